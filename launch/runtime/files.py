"""Atomic writes of files and folders, JSON files, and content hashes.

Every file is written under a temporary name, fsynced and renamed. A kill at any moment leaves the old file or the new
one, and so does a full disk, which is a UserError that names the file.
"""

import errno
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

RESTORE = "restore it from a copy, or remove it and run the same command again"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def full_disk(error: BaseException) -> str:
    """Returns the system's words if an error, or one that it came from, says that a disk or a quota is full, else "".

    Some libraries (safetensors, shutil) pass on the words alone, without the number of the error.
    """
    cause: BaseException | None = error
    while cause is not None:
        for number in _FULL:
            if getattr(cause, "errno", None) == number or any(
                words in str(cause) for words in (os.strerror(number), f"(os error {number})")
            ):
                return os.strerror(number)
        cause = cause.__cause__ or cause.__context__
    return ""


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """A context that writes to `path`. A full disk or quota raises UserError with this path."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (reason := full_disk(error)):
            raise
        raise UserError(
            f"{path}: can't be written ({reason}); free space there, then run the same command again: "
            f"what was complete before is unchanged"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a new file or folder, and renames it to `path` if the block succeeds.

    The temporary path is in the folder of `path`. Temporary files that killed processes of this host left for the same
    `path` are removed first. Raises UserError with `path` if the disk is full.
    """
    with naming_full_disk(path), _renamed_to(path) as temporary:
        yield temporary


@contextmanager
def _renamed_to(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{platform.node()}.{_pid_namespace()}."
    temporary = path.parent / f"{prefix}{os.getpid()}.part"
    replaced = temporary.with_suffix(".old")  # the folder that the new one replaces
    for other in path.parent.glob(glob.escape(prefix) + "*"):  # only processes of this host can be checked
        pid = other.name.removeprefix(prefix).removesuffix(other.suffix)
        if not pid.isdecimal() or (int(pid) != os.getpid() and _alive(int(pid))):
            continue
        if other.suffix == ".old" and not path.exists():  # the process was killed between the two renames
            os.replace(other, path)
        else:
            remove(other)
    try:
        yield temporary
        sync(temporary)
        if path.is_dir():
            os.replace(path, replaced)  # removing it takes long, and a kill would leave neither
        os.replace(temporary, path)
        sync(path.parent, deep=False)
        remove(replaced)
    except BaseException:
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)
        remove(temporary)
        raise


def _pid_namespace() -> int:
    """Returns the number of this process's PID namespace, 0 if unknown.

    Two containers with the same host name may use the same process numbers. Their namespaces differ.
    """
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _alive(pid: int) -> bool:
    """Returns True if this host has a process with this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove(path: Path) -> None:
    """Removes a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path, deep: bool = True) -> None:
    """Flushes a file or folder to the disk; with `deep`, also everything in the folder."""
    if deep and path.is_dir():
        for part in path.iterdir():
            sync(part)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8. What UTF-8 does not have (parts of odd file names) becomes `\\udc80`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file atomically. Keys keep their order."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path, remedy: str = RESTORE) -> Any:
    """Reads a JSON file. Raises UserError that names the file if it is damaged. `remedy`: what to do then."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path}: damaged JSON (it is nested too deeply); {remedy}") from None
    except ValueError as error:  # no JSON, no UTF-8, a number of more than 4,300 digits
        raise UserError(f"{path}: damaged JSON ({error}); {remedy}") from None


def read_record(path: Path, *keys: str, remedy: str = RESTORE) -> dict[str, Any]:
    """Reads a JSON file that holds an object with these keys. Raises UserError that names the file and what is wrong.

    `remedy`: what to do then.
    """
    data = read_json(path, remedy)
    if not isinstance(data, dict):
        raise UserError(f"{path}: damaged JSON (expected an object, found {type(data).__name__}); {remedy}")
    if missing := [key for key in keys if key not in data]:
        raise UserError(f"{path}: damaged JSON (it has no key {missing[0]}); {remedy}")
    return data


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files to `count` plus 512, as far as the hard limit permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
