"""Downloads whole files and compares their checksums. Keeps what has arrived after a lost connection or a kill.

Reads http(s)://, s3:// and every other URL that fsspec opens.
"""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from randcond.launch.config.paths import is_url
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import remove, sha256, sync

Answer = TypeVar("Answer")

BLOCK = 16_000_000  # bytes per request
STALL = 60.0  # seconds without a byte after which a connection counts as lost
TRIES = 8  # tries without any progress before an error
PATIENCE = 1.0  # seconds before the second try, doubled for each further one
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of the local disk: another try does not help


class FetchError(ConnectionError):
    """A server did not deliver a file. A later try may succeed."""


def is_web(url: str) -> bool:
    """Returns True for the URL of a web server, in which ? starts a query."""
    return url.startswith(("http://", "https://"))


def open_system(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL, and the path in it.

    Raises UserError if a package for this kind of URL is not installed.
    """
    options = {}
    if is_web(url):
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=STALL, sock_read=STALL)}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # ValueError: an unknown protocol
        raise UserError(f"{url}: {error}") from None


def fetch(
    url: str, target: Path, checksum: str | None = None, on_bytes: Callable[[int], object] = lambda count: None
) -> Path:
    """Downloads a file to `target` and returns it. Continues an interrupted download from TARGET.part.

    `checksum`: SHA-256 in hex, or the start of it. `on_bytes` is called with the size of each block that arrived.
    Raises UserError if the server has no such file, refuses access, or has a file with another checksum; FetchError
    after `TRIES` tries without progress; OSError if the disk is full or can't be written. Each message names the URL.
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
                remove(part)  # it belongs to another file
                continue
            _append(system, path, part, before, size, on_bytes)
            break
        except Exception as error:  # each file system's library has its own errors for a lost connection
            _raise_if_refused(url, error)
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise OSError(error.errno, f"{url}: can't write {part}: {error.strerror}") from None
            tries = 1 if part.exists() and part.stat().st_size > before else tries + 1
            if tries >= TRIES:
                raise FetchError(f"{url}: failed after {TRIES} tries ({type(error).__name__}: {error})") from None
            _wait_after(tries)
    if checksum and not (found := sha256(part)).startswith(checksum):
        remove(part)
        raise UserError(f"{url}: its checksum is {found[:16]}, expected {checksum[:16]}; the server has another file")
    sync(part)
    part.rename(target)
    return target


def ask(url: str, question: Callable[[], Answer]) -> Answer:
    """Returns the answer of `question`, which asks a file system about a URL. Retries for a server, not for a disk.

    Raises FetchError after `TRIES` tries, and UserError if the server has no such file or refuses access.
    """
    tries = 0
    while True:
        try:
            return question()
        except Exception as error:  # each file system's library has its own errors for a silent server
            if not is_url(url):
                raise
            _raise_if_refused(url, error)
            tries += 1
            if tries >= TRIES:
                raise FetchError(f"{url}: no answer after {TRIES} tries ({type(error).__name__}: {error})") from None
            _wait_after(tries)


def _wait_after(tries: int) -> None:
    time.sleep(min(30.0, PATIENCE * 2 ** (tries - 1)))


def _raise_if_refused(url: str, error: Exception) -> None:
    """Raises UserError if another try can't help: the server has no such file, or refuses access."""
    if isinstance(error, PermissionError) and error.errno != errno.EROFS:
        raise UserError(f"{url}: {error}") from None
    if _is_not_there(error):
        raise UserError(f"{url}: the server has no such file") from None


def _is_not_there(error: Exception) -> bool:
    """Returns True if the server answered "no such file".

    fsspec also raises FileNotFoundError if a web server does not answer. Only the error's cause shows the difference.
    """
    cause = error.__cause__
    answered = (
        cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in (401, 403, 404, 410)
    )
    return isinstance(error, FileNotFoundError) and answered


def _append(
    system: Any, path: str, part: Path, start: int, size: int | None, on_bytes: Callable[[int], object]
) -> None:
    """Appends the missing bytes to `part`, block by block."""
    with part.open("ab") as out:
        if size is None:  # the server does not tell the file's length: all of it in one request
            out.truncate(0)
            out.write(system.cat_file(path))
            return
        while start < size:
            stop = min(start + BLOCK, size)
            data = system.cat_file(path, start=start, end=stop)
            if len(data) == size > stop - start:  # the server ignores ranges
                out.truncate(0)
            elif len(data) != stop - start:
                raise ConnectionError(f"got {len(data)} bytes, expected {stop - start} from byte {start} of {size}")
            out.write(data)
            out.flush()
            start = out.tell()
            on_bytes(len(data))
