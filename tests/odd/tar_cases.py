"""Odd tars of pairs: each case is a file, what on_error=stop says about it, and what on_error=skip keeps of it."""

import gzip
import io
import tarfile
from typing import NamedTuple

from tests.odd.image_formats import palette_image
from tests.support.odd_images import colours, saved
from tests.support.odd_tars import member, pax, sized, sparse, tar

COLOURS = colours()
PNG, GIF = saved(COLOURS, "PNG"), saved(palette_image(), "GIF")


def pair(number: int) -> list[bytes]:
    return [member(f"{number}.png", PNG), member(f"{number}.txt", f"picture {number}".encode())]


THREE = [*pair(1), *pair(2), *pair(3)]
WHOLE = tar(THREE)
SECOND = len(b"".join(pair(1)))  # where the second pair begins
LAST = len(b"".join(THREE))  # where the end mark begins


def linked(name: str, kind: bytes, to: str = "1.txt") -> bytes:
    return member(name, type=kind, linkname=to)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def standard(form: int) -> bytes:
    """Returns a tar as Python writes it, in one of its formats, with long names that are not ASCII."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in (
            ("ordner/", b""),
            ("ordner/größe " + "x" * 120 + ".png", PNG),
            ("ordner/größe " + "x" * 120 + ".txt", b"a"),
        ):
            info = tarfile.TarInfo(name if form != tarfile.USTAR_FORMAT else name.replace("x" * 120, "x"))
            info.type, info.size = (tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE), len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Pairs(NamedTuple):
    data: bytes
    kept: int  # pairs that on_error=skip keeps; without an error also those of on_error=stop
    error: str = ""  # what on_error=stop says
    left_out: dict[str, int] = {}  # noqa: RUF012  reason -> number with on_error=skip
    passed_over: dict[str, int] = {}  # noqa: RUF012


REMEDY = "it must be a complete, uncompressed tar file"
DAMAGE = {"damaged tar": 1}
PAIRS = {
    "whole": Pairs(WHOLE, 3),
    "a single block of zeros at its end": Pairs(tar(THREE, bytes(512)), 3),
    "filled to 10 kB": Pairs(tar(THREE, bytes(10_240 - LAST % 10_240)), 3),
    "gnu format": Pairs(standard(tarfile.GNU_FORMAT), 1),
    "pax format": Pairs(standard(tarfile.PAX_FORMAT), 1),
    "ustar format": Pairs(standard(tarfile.USTAR_FORMAT), 1),
    "folders, dots and other files": Pairs(
        tar(
            [
                member("v1.0", type=tarfile.DIRTYPE),
                member("./v1.0/7.PNG", PNG),
                member("./v1.0/7.TXT", b"a"),
                member("./v1.0/7.json", b"{}"),
                member("._7.png", b"\0"),
                member(".DS_Store", b"\0"),
                member("README", b""),
            ]
        ),
        1,
        passed_over={"suffix .json": 1, "hidden": 2, "without a suffix": 1},
    ),
    "a flipped bit in a header": Pairs(
        flipped(WHOLE, SECOND), 1, f"at byte {SECOND}: no header, and the end mark .*{REMEDY}", DAMAGE
    ),
    "a flipped bit in the last header": Pairs(
        flipped(WHOLE, LAST - 1024),
        2,
        rf"at byte {LAST - 1024}: no header",
        {"damaged tar": 1, "no caption before the damage": 1},
    ),
    "zeros in the middle": Pairs(
        tar([*pair(1), bytes(1024), *pair(2)]),
        1,
        f"at byte {SECOND + 1024}: something follows the end mark of byte {SECOND}: a hole of zeros, or two tars",
        DAMAGE,
    ),
    "one header of zeros": Pairs(
        tar([*pair(1), bytes(512), PNG + bytes(-len(PNG) % 512), *pair(2)]),
        1,
        f"at byte {SECOND + 512}: something follows",
        DAMAGE,
    ),
    "two tars joined": Pairs(tar(pair(1)) + tar(pair(2)), 1, "a hole of zeros, or two tars joined", DAMAGE),
    "no end mark": Pairs(tar(THREE, b""), 3, f"at byte {LAST}: the file ends without the end mark", DAMAGE),
    "half an end mark": Pairs(tar(THREE, bytes(256)), 3, f"at byte {LAST + 256}: the file ends without", DAMAGE),
    "cut off in the last member": Pairs(
        WHOLE[: LAST - 505],
        2,
        rf"at byte {LAST - 505}: the file ends inside 3\.txt, which goes to byte {LAST - 503}",
        {"damaged tar": 1, "no caption before the damage": 1},
    ),
    "cut off in the fill of a member": Pairs(WHOLE[: LAST - 100], 3, "unexpected end of data", DAMAGE),
    "cut off in a header": Pairs(WHOLE[: SECOND + 200], 1, f"at byte {SECOND}: the file ends inside a header", DAMAGE),
    "noise after its end": Pairs(WHOLE + b"noise", 3, "something follows the end mark", DAMAGE),
    "70 MB of zeros after its end": Pairs(WHOLE + bytes(70 << 20), 3, "zeros follow, more than 67,108,864", DAMAGE),
    "compressed": Pairs(gzip.compress(WHOLE), 0, rf"is compressed \(gzip\); {REMEDY}"),
    "not a tar": Pairs(b"a text\n" * 200, 0, f"at byte 0: .*{REMEDY}"),
    "an empty file": Pairs(b"", 0, "at byte 0: empty file"),
    "no members": Pairs(bytes(10_240), 0, "contains no image with a caption: 0 images taken"),
    "a symbolic link": Pairs(
        tar([*pair(1), *pair(2)[:1], linked("2.txt", tarfile.SYMTYPE)]),
        1,
        r"2\.txt: is a link, not a regular file",
        {"a link": 1, "no caption": 1},
    ),
    "a link out of the tar": Pairs(
        tar([*pair(1), linked("2.png", tarfile.SYMTYPE, "/etc/passwd"), *pair(2)[1:]]),
        1,
        r"2\.png: is a link",
        {"a link": 1},
    ),
    "a hard link": Pairs(
        tar([*pair(1), linked("2.png", tarfile.LNKTYPE, "1.png"), *pair(2)[1:]]), 1, r"2\.png: is a link", {"a link": 1}
    ),
    "a device": Pairs(tar([*pair(1), linked("2.png", tarfile.CHRTYPE)]), 1, "is a device", {"a device": 1}),
    "a pipe": Pairs(tar([*pair(1), linked("2.png", tarfile.FIFOTYPE)]), 1, "is a device", {"a device": 1}),
    "an unknown type": Pairs(
        tar([*pair(1), member("2.png", PNG, type=b"Z")]), 1, "is of an unknown type", {"of an unknown type": 1}
    ),
    "a sparse caption of 8 GB": Pairs(
        tar([*pair(1), member("2.png", PNG), sparse("2.txt", 8_000_000_000), *pair(3)]),
        2,
        r"2\.txt: is a sparse file",
        {"a sparse file": 1, "no caption": 1},
    ),
    "a sparse caption by pax": Pairs(
        tar([*pair(1), pax({"GNU.sparse.size": "8000000000", "GNU.sparse.map": "0,1"}, member("2.txt", b"x"))]),
        1,
        "is a sparse file",
        {"a sparse file": 1},
    ),
    "a caption of 2 MB": Pairs(
        tar([*pair(1), member("2.png", PNG), member("2.txt", b"x" * 2_000_000)]),
        1,
        r"2\.txt: has 2,000,000 bytes; a caption has at most 1,000,000",
        {"caption too long": 1},
    ),
    "a caption that claims 8 GB": Pairs(
        tar([*pair(1), sized("2.txt", 8 << 30)]), 1, "the file ends inside 2.txt", DAMAGE
    ),
    "a caption of a negative size": Pairs(
        tar([*pair(1), sized("2.txt", -512), *pair(3)]), 1, "a negative size", DAMAGE
    ),
    "an image of a negative size at its start": Pairs(tar([sized("2.png", -512)]), 0, "a negative size"),
    "a pax header that claims 8 GB": Pairs(
        tar([*pair(1), pax({"path": "x"}, b"", size=8 << 30)]), 1, "a header of 8589934592 bytes", DAMAGE
    ),
    "a pax header with a negative size": Pairs(
        tar([*pair(1), pax({"size": "-1024"}, member("2.txt", b"x"))]), 1, "a negative size", DAMAGE
    ),
    "a pax header without a member": Pairs(tar([*pair(1), pax({"path": "x"}, b"")]), 1, f"at byte {SECOND}: ", DAMAGE),
    "3,000 long names in a row": Pairs(
        tar([*pair(1), member("@", b"x\0", type=tarfile.GNUTYPE_LONGNAME) * 3000]), 1, f"at byte {SECOND}: ", DAMAGE
    ),
    "two images of a key": Pairs(
        tar([*pair(1), member("1.jpg", PNG)]),
        1,
        r"1\.jpg: is the second image of its key",
        {"second image of a key": 1},
    ),
    "another format beside the image of a key": Pairs(
        tar([member("1.gif", GIF), *pair(1), member("1.psd", b"x")]),
        1,
        passed_over={"other format of a captioned image": 2},
    ),
    "two images of a key in other formats": Pairs(
        tar([*pair(1), member("2.gif", GIF), member("2.bmp", b"x"), member("2.txt", b"a")]),
        2,
        r"2\.bmp: is the second image of its key",
        {"second image of a key": 1},
    ),
    "an image without a caption in a format that no pair has": Pairs(
        tar([*pair(1), member("cover.gif", GIF)]), 1, passed_over={"suffix .gif without a caption": 1}
    ),
    "images without a caption in two formats that no pair has": Pairs(
        tar([*pair(1), member("cover.gif", GIF), member("cover.bmp", b"x")]),
        1,
        passed_over={"suffix .gif without a caption": 1, "suffix .bmp without a caption": 1},
    ),
    "an image without a caption in a format that another pair has": Pairs(
        tar([*pair(1), member("2.gif", GIF), member("2.txt", b"a"), member("cover.gif", GIF)]),
        2,
        "key cover: has no caption",
        {"no caption": 1},
    ),
    "a name that is not UTF-8, cut off": Pairs(
        tar([*pair(1), member("caf\udce9.png", PNG)])[: SECOND + 512 + 20],
        1,
        r"at byte \d+: the file ends inside caf\\udce9\.png",
        DAMAGE,
    ),
    "two members of a name": Pairs(
        tar([*pair(1), *pair(1)]),
        1,
        r"1\.txt: is the second caption of its key",
        {"second image of a key": 1, "second caption of a key": 1},
    ),
    "a caption that is not UTF-8": Pairs(
        tar([*pair(1), member("2.png", PNG), member("2.txt", b"caf\xe9")]),
        1,
        r"2\.txt: not UTF-8",
        {"caption not UTF-8": 1},
    ),
    "an image without a caption": Pairs(
        tar([*pair(1), member("2.png", PNG)]), 1, r"key 2: has no caption \(\.txt\)", {"no caption": 1}
    ),
    "an empty caption": Pairs(
        tar([*pair(1), member("2.png", PNG), member("2.txt", b" \n")]),
        1,
        "1 images have an empty caption, the first is pairs.tar/2",
        {"empty caption": 1},
    ),
    "a name with a line break": Pairs(
        tar([*pair(1), member("2\n.png", PNG)]), 1, r"key 2\\n: has no caption", {"no caption": 1}
    ),
}
