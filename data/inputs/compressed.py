"""Decompresses whole files (.gz, .bz2, .xz, .zst). A file that is cut, or has other bytes at its end, is an error."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")

_PIECE = 1 << 16  # bytes read from the file at a time, and the most that a decoder gives at a time
_SMALL_PIECE = 1 << 13  # zstandard gives all that its input holds: up to 32,000 times as many bytes
_WINDOW = 1 << 27  # bytes of memory that a zstandard frame may ask for, as `zstd -d` allows
_XZ_MEMORY = 1 << 28  # bytes; `xz -9` needs 65 MB


class Readable(Protocol):
    """A file to read from, in one pass."""

    def read(self, size: int, /) -> bytes:
        """Returns up to `size` bytes; b"" at the end."""


def read_up_to(source: Readable, size: int) -> tuple[bytes, Exception | None]:
    """Returns `size` bytes, or what comes before the end of the file or an error, and that error."""
    parts, count = [], 0
    try:
        while count < size and (part := source.read(size - count)):
            parts.append(part)
            count += len(part)
    except Exception as error:  # raised again after what was read has been used
        return b"".join(parts), error
    return b"".join(parts), None


class Decompressed:
    """The decompressed content of a file. All its streams (members, frames) are read, one after the other."""

    def __init__(self, file: Readable, suffix: str) -> None:
        """`suffix`: one of SUFFIXES, lower case."""
        self._file, self._suffix = file, suffix
        self._new = _DECODERS[suffix]
        self._piece = _SMALL_PIECE if suffix == ".zst" else _PIECE
        self._decoder: Any = None
        self._input = b""
        self._streams = 0
        self._given = 0  # bytes that the current stream has given

    def read(self, size: int, /) -> bytes:
        """Returns at least one byte, and usually not more than 64 KiB; b"" at the end.

        Raises EOFError if the file is cut, ValueError if it is damaged or has other bytes after its last stream.
        """
        while True:
            if self._decoder is None and not self._begin():
                return b""
            try:
                data = self._decode()
            except (zlib.error, OSError, EOFError, lzma.LZMAError, _zstd_error()) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # of the disk
                if isinstance(error, EOFError):
                    raise
                raise ValueError(self._cause(error)) from None
            if data:
                self._given += len(data)
                return data

    def _begin(self) -> bool:
        """Prepares for the next stream. Returns False at the end of the file."""
        while True:
            self._input = self._input or self._file.read(self._piece)
            if self._streams and self._suffix in (".gz", ".xz"):  # both may be padded with zeros
                padded = bool(self._input)
                self._input = self._input.lstrip(b"\0")
                if padded and not self._input:
                    continue
            break
        if not self._input:
            if not self._streams:
                raise EOFError(f"the file is empty, expected {_NAMES[self._suffix]} data")
            return False
        self._decoder, self._given = self._new(), 0
        self._streams += 1
        return True

    def _decode(self) -> bytes:
        """Returns the next bytes of the current stream; b"" if it needs to be called again."""
        decoder = self._decoder
        if decoder.needs_input:
            piece = self._input or self._file.read(self._piece)
            self._input = b""
            data: bytes = decoder.decompress(piece, _PIECE)
            if not piece and not data and not decoder.eof:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        else:
            data = decoder.decompress(b"", _PIECE)
        if decoder.eof:
            self._input = decoder.unused_data
            self._decoder = None
        return data

    def _cause(self, error: Exception) -> str:
        name = _NAMES[self._suffix]
        if "too much memory" in str(error):  # zstandard's own words
            return (
                f"{name} data that was compressed with a window of more than {_WINDOW >> 20} MB (`zstd --long`); write "
                f"it again without that: `zstd -dc --long=31 FILE | zstd > NEW_FILE`"
            )
        if self._given:
            return f"damaged {name} data ({error})"
        if self._streams > 1:
            return f"bytes after its {name} data that are no {name} data ({error})"
        return f"not {name} data ({error})"


class Unpacker:
    """Unpacks gzip or zlib data that arrive in pieces, all members of them."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=47)

    @property
    def whole(self) -> bool:
        """True at the end of a member."""
        return self._zlib.eof

    def add(self, data: bytes) -> bytes:
        """Returns the content of the next piece, up to 1,000 times as many bytes. Raises zlib.error for damage."""
        parts = []
        while data:
            if self._zlib.eof:
                data = data.lstrip(b"\0")  # gzip data may be padded with zeros
                if not data:
                    break
                self._zlib = zlib.decompressobj(wbits=47)
            parts.append(self._zlib.decompress(data))
            data = self._zlib.unused_data
        return b"".join(parts)


class _Gzip:
    """A zlib decoder with the methods of Python's bz2 and lzma decoders."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)  # with gzip's header and checksum

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, most)

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


class _Zstandard:
    """A zstandard decoder with the methods of Python's bz2 and lzma decoders. It ignores the bound of its output."""

    needs_input = True

    def __init__(self) -> None:
        import zstandard

        self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()

    def decompress(self, data: bytes, most: int) -> bytes:
        return bytes(self._frame.decompress(data)) if data else b""

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data)


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


_NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
_DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": _Gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
    ".zst": _Zstandard,
}
