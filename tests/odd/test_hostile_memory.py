"""Hostile images and archives, each in at most 2 GB of memory: the largest that are allowed, and those that claim more.

`pytest -s` prints memory and time of each.
"""

import gzip
import io
import json
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.odd_images import ico, png, qoi, saved, smooth
from tests.support.odd_tars import END, member, pax, sized, sparse, tar

LIMIT = 2 << 30  # bytes above what the process has when it begins
SIDE = 8192  # the largest square that is read


def rows_of_zeros(width: int, height: int, bits: int) -> bytes:
    """Returns the compressed rows of a black PNG, made without holding them."""
    row, packed = bytes(1 + width * bits // 8), zlib.compressobj(9)
    return b"".join([*(packed.compress(row) for _ in range(height)), packed.flush()])


def black_png(width: int, height: int, depth: int, colour: int) -> bytes:
    bits = depth * {0: 1, 2: 3, 6: 4}[colour]
    whole = png(width, height, depth, colour, b"")
    start = whole.index(b"IDAT") - 4
    content = b"IDAT" + rows_of_zeros(width, height, bits)
    data = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return whole[:start] + data + whole[-12:]


def black(kind: str, mode: str, **options: object) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new(mode, (SIDE, SIDE)).save(out, kind, **options)
    return out.getvalue()


def run_length_qoi() -> bytes:
    """Returns a QOI of 67 million pixels: runs of 62 pixels a byte."""
    return qoi(smooth())[:4] + struct.pack(">IIBB", SIDE, SIDE, 4, 0) + b"\xfd" * (SIDE * SIDE // 62 + 1) + b"\0" * 8


IMAGES: dict[str, tuple[str, Callable[[], bytes], str]] = {  # name -> suffix, data, what the error says
    "strip of 4 x 20,000": (".png", lambda: black_png(4, 20_000, 8, 2), ""),
    "strip of 65,535 x 1": (".png", lambda: black_png(65_535, 1, 8, 2), ""),
    "67 MP, RGBA": (".png", lambda: black_png(SIDE, SIDE, 8, 6), ""),
    "67 MP, 16-bit greyscale": (".png", lambda: black_png(SIDE, SIDE, 16, 0), ""),
    "67 MP, jpeg 2000": (".jp2", lambda: black("JPEG2000", "RGBA"), ""),
    "67 MP, webp": (".webp", lambda: black("WEBP", "RGBA", method=0), ""),
    "67 MP, floats": (".tif", lambda: black("TIFF", "F", compression="tiff_adobe_deflate"), ""),
    "67 MP, qoi": (".qoi", run_length_qoi, ""),
    "png that claims 2.5 billion pixels": (".png", lambda: png(50_000, 50_000, 8, 2, b""), "is too large"),
    "png that claims 67 MP": (".png", lambda: png(SIDE, SIDE, 8, 6, b""), "is damaged"),
    "icon with 178 MP inside": (".ico", lambda: ico(black_png(13_000, 13_000, 8, 6)), "is too large"),
    "png with 1 GB of text": (
        ".png",
        lambda: png(8, 8, 8, 0, b"", (b"zTXt", b"a\0\0" + gzip_of_zeros(1 << 30))),
        "is damaged",
    ),
}


def gzip_of_zeros(size: int) -> bytes:
    packed, block = zlib.compressobj(9), bytes(1 << 20)
    return b"".join([*(packed.compress(block) for _ in range(size >> 20)), packed.flush()])


def gzipped_zeros(size: int) -> bytes:
    """Returns a tar.gz of one file of zeros, made without holding it."""
    out = io.BytesIO()
    with gzip.open(out, "wb", 6) as file:
        file.write(sized("zeros", size))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(END)
    return out.getvalue()


PAIR = [member("1.png", b"x"), member("1.txt", b"a")]
TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "sparse caption of 8 GB": (lambda: tar([*PAIR, sparse("2.txt", 8_000_000_000)]), "is a sparse file"),
    "caption that claims 8 GB": (lambda: tar([*PAIR, sized("2.txt", 8 << 30)]), "ends inside"),
    "pax header that claims 8 GB": (lambda: tar([*PAIR, pax({"path": "x"}, b"", size=8 << 30)]), "a header of"),
}


def make_all(folder: Path) -> None:
    """Writes all hostile inputs. This is for another process than `read_all`, because it takes memory itself."""
    for number, (suffix, make, _) in enumerate(IMAGES.values()):
        (folder / f"{number}{suffix}").write_bytes(make())
    for number, (make_tar, _) in enumerate(TARS.values()):
        (folder / f"{number}.tar").write_bytes(make_tar())
    (folder / "warm.png").write_bytes(saved(smooth(), "PNG"))
    (folder / "zeros.tar.gz").write_bytes(gzipped_zeros(300 << 20))
    with (folder / "large.tar").open("wb") as file:  # a pax header that does hold 8 GB, as a hole
        file.write(pax({"path": "x"}, b"", size=8 << 30))
        file.truncate(9 << 30)


def read_all(folder: Path) -> None:
    """Reads every hostile input; prints a line of JSON for each: outcome, peak of memory in MB, seconds."""
    from randcond.data.cache.captioned_images import Picture, find_pictures, read_picture, to_square
    from randcond.data.inputs.archives import unpack

    square = to_square(512)
    square(read_picture(Picture("warm", "", folder / "warm.png")))
    limit, base = _status("VmSize") + LIMIT, _status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number, (name, (suffix, _, said)) in enumerate(IMAGES.items()):
        path = folder / f"{number}{suffix}"
        _report(base, name, said, lambda path=path: square(read_picture(Picture(path.name, "", path))))
    for number, (name, (_, said)) in enumerate(TARS.items()):
        _report(base, name, said, lambda number=number: find_pictures(str(folder / f"{number}.tar")))
    _report(base, "pax header of 8 GB", "a header of", lambda: unpack(folder / "large.tar"))
    _report(base, "tar.gz of 300 MB of zeros", "", lambda: unpack(folder / "zeros.tar.gz"))


def _report(base: int, name: str, said: str, question: Callable[[], object]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    start, outcome = time.perf_counter(), ""
    try:
        question()
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    megabytes = (_status("VmHWM") - base) / 2**20
    facts = {"name": name, "expected": said, "outcome": outcome, "MB": round(megabytes)}
    print(json.dumps({**facts, "seconds": round(time.perf_counter() - start, 2)}), flush=True)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_hostile_inputs_need_less_than_two_gigabytes(tmp_path: Path) -> None:
    make_all(tmp_path)
    done = warm.run_code(f"from tests.odd.test_hostile_memory import *; read_all(Path({str(tmp_path)!r}))")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for facts in found:
        print(f"{facts['name']:40} {facts['MB']:6} MB {facts['seconds']:7.2f} s  {facts['outcome'][:90]}")
        expected = facts["expected"]
        assert expected in facts["outcome"] if expected else not facts["outcome"], facts
        assert facts["MB"] < LIMIT >> 20
    assert len(found) == len(IMAGES) + len(TARS) + 2
