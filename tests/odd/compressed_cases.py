"""Odd compressed text (.gz, .bz2, .xz, .zst): several streams, cut files, other bytes at their end."""

import bz2
import gzip
import lzma
from collections.abc import Callable

import zstandard

from tests.odd.text_cases import TEXTS, Case, lines, refused

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


def with_a_window(log: int) -> bytes:
    """Returns zstandard data as `zstd --long=LOG` writes it: for a window of 2^LOG bytes."""
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=log, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()  # the size of the content is unknown
    return bytes(stream.compress(lines()) + stream.flush())


CUT = "Compressed file ended before the end-of-stream marker"
MORE = "".join(f"{n * n * 7919 % 1_000_003} caption {n}\n" for n in range(30_000))
COMPRESSED = [
    case
    for suffix, pack in PACK.items()
    for case in (
        Case(f"{suffix}", f"a.txt.{suffix}", pack(lines())),
        Case(f"{suffix} in capitals", f"a.TXT.{suffix.upper()}", pack(lines())),
        Case(f"{suffix} of two streams", f"a.txt.{suffix}", pack(lines()[:5000]) + pack(lines()[5000:])),
        Case(f"{suffix} with an empty stream", f"a.txt.{suffix}", pack(lines()) + pack(b"")),
        refused(
            f"{suffix} with bytes at its end",
            f"a.txt.{suffix}",
            pack(lines()) + b"garbage" * 9,
            "bytes after its ",
            TEXTS,
        ),
        Case(
            f"{suffix} of two streams, the second cut",
            f"a.txt.{suffix}",
            pack(lines()) + pack(MORE.encode())[:-5],
            TEXTS,
            CUT,
            damaged=CUT,
            more=MORE.split("\n"),
        ),
        refused(f"{suffix} that is empty", f"a.txt.{suffix}", b"", "the file is empty, expected"),
        refused(f"text named {suffix}", f"a.txt.{suffix}", lines(), "data ("),
    )
] + [
    Case("zstandard with a window of 128 MB", "a.txt.zst", with_a_window(27)),
    refused(
        "zstandard with a window of 256 MB",
        "a.txt.zst",
        with_a_window(28),
        "with a window of more than 128 MB (`zstd --long`); write it again without that: `zstd -dc --long=31 FILE |",
    ),
]
