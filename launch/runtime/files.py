"""Files that appear whole or not at all, and what tells two of them apart.

Everything is written aside, fsynced and renamed, so that a kill at any moment leaves the old file or the new one.
"""

import glob
import hashlib
import json
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write a file or fill a folder at; renames it into place on success.

    What a killed process left aside is removed first by the next writer of the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = f".{path.name}.{platform.node()}.{_pid_namespace()}."
    aside = path.parent / f"{mine}{os.getpid()}.part"
    for other in path.parent.glob(glob.escape(mine) + "*.part"):  # of this host: only its processes can be asked for
        pid = other.name.removeprefix(mine).removesuffix(".part")
        if pid.isdecimal() and not _alive(int(pid)):
            remove(other)
    remove(aside)
    try:
        yield aside
        sync(aside)
        if path.is_dir():
            remove(path)
        os.replace(aside, path)
        sync(path.parent, deep=False)
    except BaseException:
        remove(aside)
        raise


def _pid_namespace() -> int:
    """Tells two containers of one host name from each other, whose processes may have the same numbers."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path, deep: bool = True) -> None:
    """Forces a file, or a folder and (deep) all it holds, to the disk."""
    if deep and path.is_dir():
        for part in path.iterdir():
            sync(part)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole."""
    with atomic_write(path) as aside:
        aside.write_text(text)


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file whole, keys in the order given."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises UserError naming it when it is damaged."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged JSON ({error}); remove it and run the same command again") from None


def sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files, where it may, to have room for so many and some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
