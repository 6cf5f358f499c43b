"""Walks through a tar that people bring, and accepts it only if it is whole from its first byte to its last.

Python's tarfile takes a bad header, a hole of zeros, a missing end and the first of two joined tars for the end of the
archive. Here each is an error with its place. No header makes this module read more than a megabyte.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, TypeVar

from randcond.data.inputs.names import shown

Answer = TypeVar("Answer")

FILE, FOLDER = "file", "folder"  # kinds of members that are accepted
LARGEST_READ = 1 << 20  # bytes that are read at once; a longer header (a name, pax fields) is refused
LONGEST_TAIL = 64 << 20  # bytes of zeros after the last member; tar fills up to 10 kB, rarely to a megabyte


class DamagedTar(Exception):
    """A tar is not whole. The message says what is wrong, and at which byte."""


class Member(NamedTuple):
    """A member of a tar."""

    name: str
    kind: str  # FILE, FOLDER, or what else it is: a link, a device, a sparse file, of an unknown type
    start: int  # of its content, in bytes
    size: int


def walk(file: IO[bytes], size: int | None = None) -> Iterator[Member]:
    """Yields the members of a tar in their order. Read a member's content from `file` before asking for the next one.

    `file`: the tar, uncompressed or a stream that decompresses it. `size`: its bytes, if known: then a file that is cut
    off is not yielded. Raises DamagedTar where the tar is damaged, and after the last member if the end mark (zeros) is
    missing or something follows it. OSError of the disk goes through.
    """
    reader = _Bounded(file)
    archive: Any = _ask(0, lambda: tarfile.TarFile(fileobj=reader))  # type: ignore[arg-type]
    last = -1
    while info := _ask(archive.offset, archive.next):
        archive.members.clear()  # tarfile keeps them all
        if info.size < 0 or archive.offset <= last:
            raise DamagedTar(f"at byte {info.offset}: a header with a negative size")
        last, kind = archive.offset, _kind(info)
        if size is not None and kind == FILE and info.offset_data + info.size > size:
            end = info.offset_data + info.size
            raise DamagedTar(f"at byte {size}: the file ends inside {shown(info.name)}, which goes to byte {end}")
        yield Member(info.name, kind, info.offset_data, info.size)
    _check_end(reader, archive.offset)


def content(file: IO[bytes], member: Member) -> bytes:
    """Reads a member's content. Raises DamagedTar if the tar ends before."""
    file.seek(member.start)
    data = file.read(member.size)
    if len(data) != member.size:
        raise DamagedTar(f"at byte {member.start + len(data)}: the file ends inside {shown(member.name)}")
    return data


class _Bounded:
    """A file for tarfile that refuses reads of more than LARGEST_READ bytes, and remembers the last block."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.start, self.block = 0, b""

    def read(self, size: int) -> bytes:
        if size > LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.start = self._file.tell()
        self.block = self._file.read(size)
        return self.block

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        pass  # the file is the caller's


def _ask(place: int, question: Callable[[], Answer]) -> Answer:
    try:
        return question()
    except Exception as error:  # for hostile headers tarfile also raises ValueError, RecursionError, MemoryError, ...
        if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, not of the archive
            raise
        raise DamagedTar(f"at byte {place}: {shown(str(error)) or type(error).__name__}") from None


def _kind(info: tarfile.TarInfo) -> str:
    if info.issparse():
        return "a sparse file"
    if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return FILE
    if info.isdir():
        return FOLDER
    if info.issym() or info.islnk():
        return "a link"
    return "a device" if info.isdev() else "of an unknown type"


def _check_end(reader: _Bounded, end: int) -> None:
    """Raises DamagedTar if what follows the last member, from byte `end`, is not zeros: a block of 512 at least."""
    if reader.start != end or len(reader.block) > tarfile.BLOCKSIZE:
        reader.seek(end)
        reader.read(tarfile.BLOCKSIZE)
    block = reader.block
    if block.strip(b"\0"):
        said = "no header" if len(block) == tarfile.BLOCKSIZE else "the file ends inside a header"
        raise DamagedTar(f"at byte {end}: {said}, and the end mark (zeros) has not come yet")
    if len(block) < tarfile.BLOCKSIZE:
        raise DamagedTar(f"at byte {end + len(block)}: the file ends without the end mark (512 zeros)")
    place = end + len(block)
    while block := _ask(place, lambda: reader.read(LARGEST_READ)):
        if rest := block.lstrip(b"\0"):
            more = place + len(block) - len(rest)
            raise DamagedTar(
                f"at byte {more}: something follows the end mark of byte {end}: a hole of zeros, or two tars joined"
            )
        place += len(block)
        if place - end > LONGEST_TAIL:
            raise DamagedTar(f"at byte {end}: zeros follow, more than {LONGEST_TAIL:,}: it was not written to its end")
