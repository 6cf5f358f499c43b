"""Unpacks downloaded archives (zip, tar, tar.gz). The unpacked folder is complete or absent."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write


def unpacked_path(archive: Path) -> Path:
    """Returns the folder that an archive is unpacked to: the archive's path without its suffixes."""
    return archive.with_name(archive.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".zip"))


def unpack(archive: Path) -> None:
    """Unpacks an archive beside itself.

    Raises UserError naming the archive if it is damaged, or has a member that is a link or lies outside its folder.
    """
    folder = unpacked_path(archive)
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        try:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as packed:
                    packed.extractall(temporary)  # ignores absolute and upward paths
            else:
                with tarfile.open(archive) as packed_tar:
                    _extract(packed_tar, temporary)
                    while packed_tar.fileobj and packed_tar.fileobj.read(1 << 20):
                        pass  # reads to the end: gzip checks its checksum there
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, not of the archive
                raise
            raise UserError(f"{archive}: {error}; remove it and fetch it again") from None
        _lift_only_folder(temporary, folder.name)


def _extract(packed: tarfile.TarFile, folder: Path) -> None:
    """Extracts files and folders. Raises TarError for anything else (Python 3.11.0's tarfile has no filters)."""
    for member in packed:
        path = folder / member.name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{member.name} lies outside the archive's folder")
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        content = packed.extractfile(member) if member.isreg() else None
        if content is None:
            raise tarfile.TarError(f"{member.name} is not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with content, path.open("wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)


def _lift_only_folder(folder: Path, name: str) -> None:
    """Moves the content of FOLDER/NAME to FOLDER if nothing else is in FOLDER, so that no path has NAME/NAME."""
    inner = list(folder.iterdir())
    if [each.name for each in inner] == [name] and inner[0].is_dir():
        lifted = inner[0].rename(folder.with_name(f"{folder.name}.inner"))
        folder.rmdir()
        lifted.rename(folder)
