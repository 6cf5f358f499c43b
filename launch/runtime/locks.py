"""File locks: one writer per run folder, one worker per piece of work.

The system releases a lock when the process that holds it dies.
"""

import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.launch.runtime.logs import log

_held: list[int] = []  # open file descriptors: they hold their locks until this process ends


def _try_lock(path: Path) -> int | None:
    """Locks a file and returns its open file descriptor.

    Returns None if another process holds the lock or has just removed the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        if error.errno == errno.ESTALE:  # NFS: the holder on another host removed the file after it was opened here
            return None
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise UserError(
                f"{path.parent}: this file system does not support flock ({error.strerror}); mount it with flock, "
                "or use another file system"
            ) from None
        raise
    return handle


def hold_lock(folder: Path, patience: float = 30.0) -> None:
    """Locks a run folder until this process ends.

    Raises UserError if another process still holds the lock after `patience` seconds.
    """
    _held.append(_wait_for_lock(folder, patience))


@contextmanager
def locked(folder: Path, patience: float = 30.0, message: str = "") -> Iterator[None]:
    """Locks a folder until the context ends.

    `message`: logged once if another process holds the lock.
    Raises UserError if another process still holds the lock after `patience` seconds.
    """
    handle = _wait_for_lock(folder, patience, message)
    try:
        yield
    finally:
        os.close(handle)


def _wait_for_lock(folder: Path, patience: float, message: str = "") -> int:
    deadline = time.monotonic() + patience
    logged = not message
    while (handle := _try_lock(folder / ".lock")) is None:
        if time.monotonic() > deadline:
            raise UserError(f"{folder} is being written by another run; wait for that run or stop it")
        if not logged:
            log.info(message)
            logged = True
        time.sleep(0.1)
    return handle


def claim_each(pieces: list[Path], done: Callable[[Path], bool], unfinished: int = 0) -> Generator[int, None, None]:
    """Yields the numbers of the pieces of work that are not done. Each piece is locked while the caller works on it.

    Several processes, on any hosts that share the folder, may iterate at the same time. Each piece goes to one of them.
    If that process is killed, its piece goes to another one. The iteration ends when all pieces are done, so it also
    waits for the pieces of other processes.

    `done`: returns True if a piece is done.
    `unfinished`: how many pieces may still be in work, in a thread of the caller, when the next one is yielded.
    """
    claimed: deque[tuple[Path, int]] = deque()

    def release(claim: tuple[Path, int]) -> None:
        lock, handle = claim
        lock.unlink(missing_ok=True)
        os.close(handle)

    remaining = list(range(len(pieces)))
    try:
        while remaining := [number for number in remaining if not done(pieces[number])]:
            all_taken = True
            for number in remaining:
                lock = pieces[number].parent / f".{pieces[number].name}.claim"
                handle = _try_lock(lock)
                if handle is None:
                    continue
                claimed.append((lock, handle))
                if done(pieces[number]):  # another process finished it before we locked it
                    release(claimed.pop())
                    continue
                all_taken = False
                yield number
                while len(claimed) > unfinished:
                    release(claimed.popleft())
            if all_taken:
                time.sleep(0.5)
    finally:
        while claimed:
            release(claimed.popleft())
