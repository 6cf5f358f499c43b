"""Files from a server, whole: resumed where a connection was cut, checked, renamed into place.

http(s)://, s3:// and every other address that fsspec opens.
"""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from randcond.data.files import remove, sha256, sync
from randcond.launch.config import is_url

Answer = TypeVar("Answer")

BLOCK = 16_000_000  # bytes asked for at once
STALL = 60.0  # seconds without a byte after which a server counts as gone
TRIES = 8  # without any progress
PATIENCE = 1.0  # seconds before the second try, doubled for each further one
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of ours, and no use to try again


class FetchError(ConnectionError):
    """A file that a server did not give."""


def is_web(url: str) -> bool:
    """Whether it is a web server's address, in which ? begins a query."""
    return url.startswith(("http://", "https://"))


def open_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it; raises ValueError naming what is missing for it."""
    options = {}
    if is_web(url):
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=STALL, sock_read=STALL)}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}") from None


def fetch(
    url: str, target: Path, checksum: str | None = None, seen: Callable[[int], object] = lambda count: None
) -> Path:
    """Brings a file to `target`; what a killed or cut transfer left in TARGET.part is gone on from.

    `seen` is told how many bytes came. Raises FetchError naming the address after `TRIES` tries without progress,
    FileNotFoundError or PermissionError when the server does not have it or give it, ValueError when the bytes do not
    have the checksum, OSError when the disk can't take them.
    """
    system, path = open_system(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    tries = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            size = system.info(path)["size"]
            if size is not None and before > size:
                remove(part)  # of another file
                continue
            _append(system, path, part, before, size, seen)
            break
        except Exception as error:  # whatever a file system's library calls a cut connection
            if _is_not_there(error):
                raise FileNotFoundError(f"{url}: the server has no such file") from None
            if isinstance(error, PermissionError):
                raise PermissionError(f"{url}: {error}") from None
            if isinstance(error, OSError) and error.errno in _DISK:
                raise OSError(error.errno, f"{url}, brought to {part}: {error.strerror}") from None
            tries = 1 if part.exists() and part.stat().st_size > before else tries + 1
            if tries >= TRIES:
                raise FetchError(f"{url}: not given after {TRIES} tries ({type(error).__name__}: {error})") from None
            _wait_after(tries)
    if checksum and not sha256(part).startswith(checksum):
        remove(part)
        raise ValueError(f"{url}: its bytes do not have the checksum {checksum[:16]}...; the server holds another file")
    sync(part)
    part.rename(target)
    return target


def ask(url: str, question: Callable[[], Answer]) -> Answer:
    """What a file system says of an address, a server's asked again while it fails; a question to a disk, once.

    Raises FetchError naming the address after `TRIES` tries, and what the server refuses as `fetch` does.
    """
    tries = 0
    while True:
        try:
            return question()
        except Exception as error:  # whatever a file system's library calls a server that does not answer
            if not is_url(url) or isinstance(error, PermissionError) or _is_not_there(error):
                raise
            tries += 1
            if tries >= TRIES:
                raise FetchError(f"{url}: no answer after {TRIES} tries ({type(error).__name__}: {error})") from None
            _wait_after(tries)


def _wait_after(tries: int) -> None:
    time.sleep(min(30.0, PATIENCE * 2 ** (tries - 1)))


def _is_not_there(error: Exception) -> bool:
    """Whether the server said so; fsspec's http says "not found" of a server that does not answer, too."""
    cause = error.__cause__
    refused = (
        cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in (401, 403, 404, 410)
    )
    return isinstance(error, FileNotFoundError) and refused


def _append(system: Any, path: str, part: Path, start: int, size: int | None, seen: Callable[[int], object]) -> None:
    """Adds what is missing, block by block."""
    with part.open("ab") as out:
        if size is None:  # a server that does not say how long the file is: all of it at once
            out.truncate(0)
            out.write(system.cat_file(path))
            return
        while start < size:
            stop = min(start + BLOCK, size)
            data = system.cat_file(path, start=start, end=stop)
            if len(data) == size > stop - start:  # a server that knows no ranges
                out.truncate(0)
            elif len(data) != stop - start:
                raise ConnectionError(f"gave {len(data)} bytes for {stop - start}, from byte {start} of {size}")
            out.write(data)
            out.flush()
            start = out.tell()
            seen(len(data))
