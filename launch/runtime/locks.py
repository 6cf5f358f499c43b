"""Locks that the system lets go of when their holder dies: one writer per run folder, one worker per piece of work."""

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

_held: list[int] = []  # file descriptors kept open for the life of the process


def _try_lock(path: Path) -> int | None:
    """An open, locked file descriptor, or None when another process holds the lock, or removed the file just now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        if error.errno == errno.ESTALE:  # NFS: removed by its holder on another host since it was opened
            return None
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise UserError(
                f"{path.parent}: its file system knows no flock ({error.strerror}); mount it with flock, or use another"
            ) from None
        raise
    return handle


def hold_lock(folder: Path, patience: float = 30.0) -> None:
    """Takes a run folder for the life of this process.

    Raises UserError when another process still holds it after `patience` seconds.
    """
    _held.append(_take(folder, patience))


@contextmanager
def locked(folder: Path, patience: float = 30.0, waiting: str = "") -> Iterator[None]:
    """The same for as long as the context lasts; `waiting` is printed where another holds it."""
    handle = _take(folder, patience, waiting)
    try:
        yield
    finally:
        os.close(handle)


def _take(folder: Path, patience: float, waiting: str = "") -> int:
    deadline = time.monotonic() + patience
    said = not waiting
    while (handle := _try_lock(folder / ".lock")) is None:
        if time.monotonic() > deadline:
            raise UserError(f"{folder} is being written by another run; wait for it or end it")
        if not said:
            log.info(waiting)
            said = True
        time.sleep(0.1)
    return handle


def claim_each(pieces: list[Path], done: Callable[[Path], bool], behind: int = 0) -> Generator[int, None, None]:
    """Numbers of the pieces that are not done and that no other process works at, each claimed while it is used.

    Any number of processes on any hosts that share the folder may iterate at once: every piece is given to one of
    them, and a killed one's goes to another. Ends when all are done: it waits for those that others work at, and for
    the last `behind` of its own, which may be finished in a thread while the next one is begun.
    """
    claimed: deque[tuple[Path, int]] = deque()

    def release(claim: tuple[Path, int]) -> None:
        lock, handle = claim
        lock.unlink(missing_ok=True)
        os.close(handle)

    left = list(range(len(pieces)))
    try:
        while left := [number for number in left if not done(pieces[number])]:
            busy = True
            for number in left:
                lock = pieces[number].parent / f".{pieces[number].name}.claim"
                handle = _try_lock(lock)
                if handle is None:
                    continue
                claimed.append((lock, handle))
                if done(pieces[number]):  # by another, between our looking and our claiming
                    release(claimed.pop())
                    continue
                busy = False
                yield number
                while len(claimed) > behind:
                    release(claimed.popleft())
            if busy:
                time.sleep(0.5)
    finally:
        while claimed:
            release(claimed.popleft())
