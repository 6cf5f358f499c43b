"""Unpacks downloaded archives (zip, tar, tar.gz). An archive is whole or refused, and so is the folder it becomes.

An archive is first read through to its end: its checksums, its members' names and kinds, and the disk space it needs.
"""

import errno
import gzip
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from randcond.data.inputs.names import shown
from randcond.data.inputs.signatures import HEAD, kind_of_content
from randcond.data.inputs.tars import FILE, FOLDER, DamagedTar, Member, walk
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may ask for gigabytes of memory
_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ)  # errors of a member's name, not of the disk


class _Refused(Exception):
    """An archive is damaged, or holds what is not unpacked."""


# zipfile raises also ValueError, RuntimeError and struct.error for damaged archives.
_DAMAGE = (
    _Refused, DamagedTar, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, struct.error, MemoryError
)  # fmt: skip


def unpacked_path(archive: Path) -> Path:
    """Returns the folder that an archive is unpacked to: the archive's path without its suffixes."""
    return archive.with_name(archive.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".zip"))


def unpack(archive: Path) -> None:
    """Unpacks an archive beside itself.

    Raises UserError naming the archive if it is damaged or not whole; if a member is a link, a device, a sparse or an
    encrypted file, lies outside the archive's folder or has the name of another one; or if the disk has too little
    space. Nothing is left behind then.
    """
    folder = unpacked_path(archive)
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        try:
            if archive.suffix == ".zip":
                _unzip(archive, temporary)
            else:
                _untar(archive, temporary)
        except _DAMAGE as error:
            raise UserError(f"{archive}: {str(error) or type(error).__name__}; remove it and fetch it again") from None
        except OSError as error:
            if error.errno is None or error.errno in _NAMES:
                raise UserError(f"{archive}: {error.strerror or error}; remove it and fetch it again") from None
            raise OSError(error.errno, f"{archive}: can't unpack to {folder}: {error.strerror}") from None
        _lift_only_folder(temporary, folder.name)


def _untar(archive: Path, folder: Path) -> None:
    names = _Names()
    with _opened(archive) as (file, size):
        for member in walk(file, size):
            names.add(member)
    names.check_space(archive, folder)
    with _opened(archive) as (file, size):
        for member in walk(file, size):
            if member.kind == FILE:
                file.seek(member.start)
            _write(member, file, folder)


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """Opens a tar, plain or gzip, as a stream of its uncompressed bytes, with their number if it is known."""
    with archive.open("rb") as file:
        compressed = kind_of_content(file.read(HEAD)) == "gzip"
        file.seek(0)
        if compressed:
            with gzip.open(file) as stream:
                yield cast(IO[bytes], stream), None
        else:
            yield file, os.fstat(file.fileno()).st_size


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
        if not entries:
            raise _Refused("holds no file")
        if before := min(entry.header_offset for entry in entries):
            raise _Refused(f"{before:,} bytes stand before its first member: two zips joined, or another file")
        names, members = _Names(), [_member(entry) for entry in entries]
        for member in members:
            names.add(member)
        names.check_space(archive, folder)
        for member, entry in zip(members, entries, strict=True):
            if member.kind == FILE:
                with packed.open(entry) as content:
                    _write(member, content, folder)  # raises BadZipFile, which names the file, for a wrong checksum
            else:
                _write(member, None, folder)


def _member(entry: zipfile.ZipInfo) -> Member:
    mode = entry.external_attr >> 16
    if entry.flag_bits & 0x1:
        kind = "encrypted"
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a link" if stat.S_ISLNK(mode) else "a device"
    elif entry.compress_type not in _METHODS:
        kind = f"compressed by method {entry.compress_type}"
    else:
        kind = FOLDER if entry.is_dir() else FILE
    return Member(entry.filename, kind, entry.header_offset, entry.file_size)


class _Names:
    """The members of an archive so far: refuses what is not unpacked, and adds up the bytes."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._bytes = 0

    def add(self, member: Member) -> None:
        """Raises _Refused if the member is neither file nor folder, lies outside, or has another one's name."""
        name = shown(member.name)
        if member.kind not in (FILE, FOLDER):
            raise _Refused(f"{name} is {member.kind}, not a regular file")
        parts = PurePosixPath(member.name).parts
        if member.name.startswith("/") or ".." in parts or "\\" in member.name or "\0" in member.name:
            raise _Refused(f"{name} lies outside the archive's folder")
        path = "/".join(parts)
        folders = ["/".join(parts[:count]) for count in range(1, len(parts))]
        if member.kind == FOLDER:
            folders.append(path)
        elif path in self._files or not path:
            raise _Refused(f"two members have the name {name}")
        else:
            self._files.add(path)
            self._bytes += member.size
        self._folders.update(folders)
        if clash := [each for each in (*folders, path) if each in self._files and each in self._folders]:
            raise _Refused(f"{shown(clash[0])} is both a file and a folder")

    def check_space(self, archive: Path, folder: Path) -> None:
        """Raises UserError if the disk of `folder` has less space than the members need."""
        free = shutil.disk_usage(folder).free
        if self._bytes > free:
            raise UserError(
                f"{archive}: needs {self._bytes:,} bytes when unpacked, but {folder.parent} has {free:,} free; free "
                f"some space, or use another folder (--to)"
            )


def _write(member: Member, content: IO[bytes] | None, folder: Path) -> None:
    path = folder / member.name
    if member.kind == FOLDER or content is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with path.open("wb") as out:
        while left and (block := content.read(min(left, 1 << 20))):
            out.write(block)
            left -= len(block)
    if left:
        raise _Refused(f"ends inside {shown(member.name)}")


def _lift_only_folder(folder: Path, name: str) -> None:
    """Moves the content of FOLDER/NAME to FOLDER if nothing else is in FOLDER, so that no path has NAME/NAME."""
    inner = list(folder.iterdir())
    if [each.name for each in inner] == [name] and inner[0].is_dir():
        lifted = inner[0].rename(folder.with_name(f"{folder.name}.inner"))
        folder.rmdir()
        lifted.rename(folder)
