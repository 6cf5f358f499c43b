"""Checks that a PNG is whole. Pillow shows the missing rows of one that ends early as black, without an error."""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 20  # bytes of pixels that are unpacked at a time


def what_is_missing(data: bytes) -> str:
    """Returns what a PNG that Pillow has decoded lacks at its end, e.g. "has no end mark (IEND)"; "" if it is whole.

    `data`: the file, or a file that contains PNGs (an icon): then each of them is checked. What follows the end mark of
    a PNG does not matter.
    """
    if data.startswith(SIGNATURE):
        return _missing(data, 0)
    start = data.find(SIGNATURE)
    while start >= 0:
        if missing := _missing(data, start):
            return missing
        start = data.find(SIGNATURE, start + len(SIGNATURE))
    return ""


def _missing(data: bytes, start: int) -> str:
    needed, given, unpacker = 0, 0, zlib.decompressobj()
    for name, content in _chunks(data, start + len(SIGNATURE)):
        if name == b"IHDR":
            needed = _bytes_of_pixels(content)
        elif name == b"IDAT" and given < needed:
            piece: bytes | memoryview = content
            while piece and given < needed and not unpacker.eof:
                given += len(unpacker.decompress(piece, _PIECE))
                piece = unpacker.unconsumed_tail
        elif name == b"IEND":
            return "" if given >= needed else f"has {given:,} bytes of pixels, and {needed:,} are needed"
    return "is cut off: it has no end mark (IEND)"


def _chunks(data: bytes, place: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yields name and content of each chunk that is there as a whole."""
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):  # the checksum follows
            return
        yield name, memoryview(data)[place + 8 : end]
        place = end + 4


def _bytes_of_pixels(header: memoryview) -> int:
    """Returns the number of bytes that the pixels of a PNG have, with the byte before each row."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    bits = depth * _CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, right, down in passes:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
