"""Hostile text files need little memory: small files of endless lines, and a quote left open in every row."""

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

HOSTILE = """
import resource, sys
from pathlib import Path
from randcond.data.captions.pool import build
from randcond.launch.errors import UserError
used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (2 << 30),) * 2)
try:
    print(build(Path(sys.argv[1]) / "pool", [sys.argv[2]], skip=sys.argv[3] == "skip")["dropped"])
except UserError as error:
    print(error)
"""


def endless(folder: Path, suffix: str, size: int) -> Path:
    """Writes a small file that decompresses to `size` MiB without a line end."""
    path, piece = folder / f"a.txt.{suffix}", bytes(b"x" * (1 << 20))
    if suffix == "zst":
        with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as out:
            for _ in range(size):
                out.write(piece)
    else:
        path.write_bytes(gzip.compress(piece, 1) * size)
    return path


def open_quotes(folder: Path, row: bytes, size: int) -> Path:
    """Writes csv of a size in bytes in which each row's quote is open."""
    path = folder / "a.csv"
    path.write_bytes(b"a,caption\n" + row * (size // len(row)))
    return path


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("make", "skip", "said"),
    [
        (lambda folder: endless(folder, "gz", 4096), "stop", "line 1: is longer than 16 MB"),
        (lambda folder: endless(folder, "zst", 4096), "stop", "line 1: is longer than 16 MB"),
        (lambda folder: endless(folder, "zst", 1024), "skip", "{'line too long': 1}"),
        (lambda folder: open_quotes(folder, b'a","b\n', 20_000_000), "stop", "line 2: has a quote that"),
        (lambda folder: open_quotes(folder, b'a","b\n', 20_000_000), "skip", "{'unclosed quote': "),
        (lambda folder: open_quotes(folder, b'1,"a\n', 2_000_000), "skip", "{'unclosed quote': 400000}"),
    ],
)
def test_hostile_files_need_little_memory(tmp_path: Path, make: Callable[[Path], Path], skip: str, said: str) -> None:
    words = [sys.executable, "-c", HOSTILE, str(tmp_path), str(make(tmp_path)), skip]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
