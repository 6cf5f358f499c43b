"""Finds the encoding of a text file from its first bytes, and gives its content as UTF-8."""

import codecs
import re
from dataclasses import dataclass
from typing import Any

from randcond.data.inputs.compressed import Readable, read_up_to
from randcond.data.inputs.signatures import kind_of_content

_HEAD = 1 << 16  # bytes that the encoding is found from
_OTHERS = {  # kind of content -> what such a file is, and the way out
    "gzip": "gzip data; give its name the suffix .gz",
    "bzip2": "bzip2 data; give its name the suffix .bz2",
    "xz": "xz data; give its name the suffix .xz",
    "zstandard": "zstandard data; give its name the suffix .zst",
    "zip": "a zip archive or a spreadsheet; unpack it, or save it as csv",
    "parquet": "parquet data; give its name the suffix .parquet",
    "tar": "a tar archive; unpack it",
    "PDF": "a PDF document; save its text as txt",
    "HTML": "a web page; download the file itself",
    "Git LFS": "a Git LFS pointer in place of the file; fetch it with `git lfs pull`",
    "UTF-32": "text in UTF-32; convert the file with `iconv -f utf-32 -t utf-8`",
}


class NotText(ValueError):
    """A file that is not text in UTF-8 or UTF-16."""


@dataclass(frozen=True)
class Encoding:
    """An encoding of text."""

    name: str
    codec: str = "utf-8"
    mark: int = 0  # bytes of the byte-order mark to leave out


_UTF8 = Encoding("UTF-8")


def as_utf8(file: Readable) -> tuple[Readable, Encoding]:
    """Returns a file's content as UTF-8, and the encoding that the file has.

    Half characters of UTF-16 come as bytes that are not UTF-8. Raises NotText if the file is something else.
    """
    head, error = read_up_to(file, _HEAD)
    encoding = _encoding(head)
    source = _WithHead(head[encoding.mark :], file, error)
    return (source if encoding is _UTF8 else _Recoded(source, encoding)), encoding


def _encoding(head: bytes) -> Encoding:
    if what := _OTHERS.get(kind_of_content(head)):
        raise NotText(f"contains {what}")
    for mark, codec in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if head.startswith(mark):
            return Encoding("UTF-16", codec, len(mark))
    if b"\0" not in head:
        return _UTF8
    for codec, place in (("utf-16-le", 1), ("utf-16-be", 0)):
        if _is_utf16(head[: len(head) // 2 * 2], codec, place):
            return Encoding("UTF-16", codec)
    lines = head.split(b"\n")
    if len(lines) > 1 and (not lines[-1] or len(head) == _HEAD):  # no line, or a cut one
        lines.pop()
    if sum(not _is_utf8(line) for line in lines) * 2 > len(lines):
        raise NotText(f"is not a text file: it contains NUL bytes ({head.count(0):,} of its first {len(head):,} bytes)")
    return _UTF8  # a few NUL bytes: their lines are bad


def _is_utf8(line: bytes) -> bool:
    """Returns True for a line of text without NUL bytes."""
    try:
        return "\0" not in line.decode()
    except UnicodeDecodeError:
        return False


def _is_utf16(data: bytes, codec: str, place: int) -> bool:
    """Returns True if text without a byte-order mark is certainly UTF-16. `place`: 1 if its NUL bytes come second."""
    zeros = data[place::2].count(0)
    if data[1 - place :: 2].count(0) or zeros * 10 < len(data) // 2 * 4:
        return False
    try:
        text = codecs.getincrementaldecoder(codec)().decode(data)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return not re.search(r"[\x00-\x08\x0e-\x1f]", text)


def undecodable(line: str, encoding: Encoding) -> str:
    """Returns why a line could not be decoded, and the way out; "" if it could.

    `line`: decoded with the error handler surrogateescape.
    """
    data = line.encode("utf-8", "surrogateescape")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if encoding is not _UTF8:
            return f"not {encoding.name} (half a character); repair or remove the line"
        before = data[: error.start].decode()
        column, byte = len(before) + 1, data[error.start]
        if all(char < "\x80" or "\udc80" <= char <= "\udcff" for char in line):
            name, codec = ("Latin-1", "latin1") if byte >= 0xA0 else ("Windows-1252", "cp1252")
            way_out = f"{name}?); convert the file with `iconv -f {codec} -t utf-8`"
        else:  # the line has other characters in UTF-8
            way_out = "damaged?); repair or remove the line"
        return f"not UTF-8 (byte {byte:#04x} at column {column}; {way_out}"
    return ""


class _WithHead:
    """A file whose first bytes were read before."""

    def __init__(self, head: bytes, file: Readable, error: Exception | None) -> None:
        """`error`: what ended the reading of the head; raised after it."""
        self._head, self._file, self._error = head, file, error

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        if self._error:
            raise self._error
        return self._file.read(size)


class _Recoded:
    """A file in another encoding, as UTF-8."""

    def __init__(self, file: Readable, encoding: Encoding) -> None:
        self._file, self._name = file, encoding.name
        self._decoder: Any = codecs.getincrementaldecoder(encoding.codec)("surrogatepass")

    def read(self, size: int, /) -> bytes:
        while data := self._file.read(max(2, size // 3)):  # two bytes become up to three
            if text := self._decoder.decode(data):
                return bytes(text.encode("utf-8", "surrogatepass"))
        if self._decoder.getstate()[0]:
            raise EOFError(f"the file ends in the middle of a character of {self._name}")
        return b""
