"""Downloads whole files and compares their checksums. Keeps what has arrived after a lost connection or a kill.

Reads http(s)://, s3:// and every other URL that fsspec opens.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from randcond.data.inputs.names import file_name
from randcond.data.inputs.part import FileChanged, Part, Version
from randcond.data.inputs.signatures import HEAD
from randcond.data.inputs.web import Busy, append_from_web, check_is_data, check_status, version_on_web
from randcond.launch.config.paths import is_url
from randcond.launch.errors import UserError
from randcond.launch.install.extras import need
from randcond.launch.runtime.files import sha256
from randcond.launch.urls import TAKEN_OFF, hide_secrets, remember, show_url

Answer = TypeVar("Answer")

BLOCK = 16_000_000  # bytes per request, of servers other than web servers
STALL = 60.0  # seconds without a byte after which a connection counts as lost
TRIES = 8  # tries without any progress before an error
CHANGES = 3  # how often a file may change while it is downloaded
PATIENCE = 1.0  # seconds before the second try, doubled for each further one
LONGEST_WAIT = 300.0  # seconds that a busy server may ask to wait
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of the local disk: another try does not help
_INVALID = "is not a valid address; in a user or password, write %40 for @, %3A for :, %2F for /, %3F for ?, %23 for #"
# What the facts of fsspec's file systems call the version of a file: s3 and az, gs, hf, github, a zip; times elsewhere.
_TAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5", "blob_id", "sha", "CRC")
_TIMES = ("LastModified", "last_modified", "mtime", "modify", "modificationTime", "created")
_WEB_LASTING = {  # parts of the names of aiohttp's errors
    "Redirect": "the server redirects in a circle, or to something that is no web address",
    "Certificate": "the certificate of the server is not valid here",
}


class FetchError(ConnectionError):
    """A server did not deliver a file. A later try may succeed."""


def is_web(url: str) -> bool:
    """Returns True for the URL of a web server, in which ? starts a query."""
    return url.startswith(("http://", "https://"))


def open_system(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL, and the path in it. `${NAME}` in it is an environment variable.

    Raises UserError if a package for this kind of URL is not installed, or if a variable is not set; FetchError and
    UserError as fetch() does if a server must be asked already.
    """
    check_packages(url)
    if is_url(url):
        url = fill_in(url)
    options = _options(url)

    def opened() -> tuple[Any, str]:  # github:// asks its server here
        try:
            return fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError, TypeError) as error:  # an unknown protocol, or parts of the URL are missing
            raise UserError(f"{show_url(url)}: {_INVALID if is_web(url) else error}") from None

    return ask(url, opened)


def check_packages(url: str) -> None:
    """Raises UserError if an extra that reads this kind of URL is not installed."""
    if re.search(r"\bs3a?://", url):
        need("s3", show_url(url))


def _options(url: str) -> dict[str, Any]:
    """Returns the arguments of the fsspec file systems of a URL: those over aiohttp read ~/.netrc and the proxies.

    In a chained URL (filecache::https://...) they are given by protocol.
    """
    protocols = {part.partition("://")[0] for part in url.split("::") if "://" in part}
    if protocols & {"gs", "gcs"}:
        complete_proxies()
        own: dict[str, Any] = {"session_kwargs": {"trust_env": True}}
        return own if "::" not in url else {"gs": own, "gcs": own}
    if not protocols & {"http", "https"}:
        return {}
    import aiohttp

    complete_proxies()
    timeout = aiohttp.ClientTimeout(sock_connect=STALL, sock_read=STALL)
    own = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    return own if "::" not in url else dict.fromkeys(protocols & {"http", "https"}, own)


def complete_proxies() -> None:
    """Puts http:// before a proxy that is given as HOST:PORT: curl and most libraries take it, aiohttp does not."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        if (proxy := os.environ.get(name, "")) and "://" not in proxy:
            os.environ[name] = f"http://{proxy}"


def fill_in(url: str) -> str:
    """Returns a URL with the values of the environment variables that it names as `${NAME}`.

    Raises UserError if a variable is not set, or if the query was taken off when the URL was written.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{show_url(url)}: the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    if is_web(url) and url.endswith(TAKEN_OFF):
        raise UserError(
            f"{url}: the query of this address was taken off when it was written down; give the whole address, or an "
            f"environment variable that holds the query: {url.removesuffix(TAKEN_OFF)}?${{NAME}}"
        )
    whole = re.sub(r"\$\{(\w+)\}", value, url)
    remember(whole)
    return whole


def fetch(
    url: str, target: Path, checksum: str | None = None, on_bytes: Callable[[int], object] = lambda count: None
) -> Path:
    """Downloads a file to `target` and returns it. Continues an interrupted download of the same version.

    `checksum`: SHA-256 in hex, or the start of it. `on_bytes` is called with the size of each block that arrived.
    Raises UserError if the server has no such file, refuses access, sends a page in place of the file, or has a file
    with another checksum; FetchError after `TRIES` tries without progress; OSError if the disk is full or can't be
    written. Each message names the URL.
    """
    system, path = open_system(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part(target, url)
    most, tries, changes = part.size, 0, 0
    while True:
        failure: Exception | None = None
        try:
            _append(system, path, part, on_bytes)
            if part.complete:
                break
        except Exception as error:  # each file system's library has its own errors for a lost connection
            _raise_if_refused(url, error)
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise OSError(error.errno, f"{show_url(url)}: can't write {part.path}: {error.strerror}") from None
            failure = error
        if isinstance(failure, FileChanged):
            most, changes = 0, changes + 1
        tries = (1 if failure else 0) if part.size > most else tries + 1
        most = max(most, part.size)
        if tries >= TRIES or changes > CHANGES:
            raise FetchError(f"{show_url(url)}: failed after {max(tries, changes)} tries ({_reason(failure)})")
        if tries:
            _wait_after(url, tries, failure)
    return _checked(url, part, checksum)


def _checked(url: str, part: Part, checksum: str | None) -> Path:
    """Makes a complete part the target if it is no page and has the checksum. Removes it otherwise."""
    try:
        with part.path.open("rb") as file:
            check_is_data(url, part.target.name, "", file.read(HEAD))
        if checksum and not (found := sha256(part.path)).startswith(checksum):
            raise UserError(
                f"{show_url(url)}: its checksum is {found[:16]}, expected {checksum[:16]}; the server has another file"
            )
    except UserError:
        part.drop()
        raise
    return part.finish()


def version_of(url: str) -> Version:
    """Asks a server for the version of a file, without its content. Raises UserError and FetchError as fetch() does."""
    system, path = open_system(url)
    if is_web(url):
        return ask(url, lambda: version_on_web(system, path, file_name(path)))
    return ask(url, lambda: _version_from(system.info(path)))


def told_of_version(facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns what the facts of an fsspec file system tell of a file's version, besides its size: key -> value."""
    return {key: str(facts[key]) for key in (*_TAGS, *_TIMES) if facts.get(key)}


def _version_from(facts: Mapping[str, Any]) -> Version:
    """Returns the version that the facts of an fsspec file system tell."""
    told = told_of_version(facts)
    tag, time_of_change = (next((told[key] for key in keys if key in told), "") for keys in (_TAGS, _TIMES))
    return Version(facts.get("size"), tag, time_of_change)


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
                raise FetchError(f"{show_url(url)}: no answer after {TRIES} tries ({_reason(error)})") from None
            _wait_after(url, tries, error)


def _reason(error: Exception | None) -> str:
    if error is None:
        return "the server sends fewer bytes than it says"
    kind = "" if type(error) in (ConnectionError, Busy, FileChanged) else f"{type(error).__name__}: "
    return f"{kind}{hide_secrets(str(error))}"


def _wait_after(url: str, tries: int, error: Exception | None) -> None:
    """Waits before another try, as long as a busy server asks. Raises FetchError if it asks for too long."""
    asked = error.seconds if isinstance(error, Busy) else None
    if asked is not None and asked > LONGEST_WAIT:
        raise FetchError(f"{show_url(url)}: {error}; it asks to wait for {asked:.0f} s, so try again later")
    time.sleep(min(30.0, PATIENCE * 2 ** (tries - 1)) if asked is None else asked)


def _raise_if_refused(url: str, error: Exception) -> None:
    """Raises UserError if another try can't help: the server has no such file, or refuses access."""
    if isinstance(error, UserError):
        raise error
    if isinstance(error, PermissionError) and error.errno != errno.EROFS:
        raise UserError(f"{show_url(url)}: {error}") from None
    status = _status(error) or _status(error.__cause__)
    if status and status not in (429, 503):
        try:
            check_status(url, status, {})
        except ConnectionError:
            return
    if _is_not_there(error):
        raise UserError(f"{show_url(url)}: the server has no such file") from None
    if is_web(url) and isinstance(error, ValueError):  # its text may quote a piece of a password
        raise UserError(f"{show_url(url)}: {_INVALID}") from None
    if is_web(url) and (kind := [sign for sign in _WEB_LASTING if sign in type(error).__name__]):
        raise UserError(f"{show_url(url)}: {_WEB_LASTING[kind[0]]} ({hide_secrets(str(error))})") from None


def _status(error: BaseException | None) -> int | None:
    """Returns the status of the answer that is an error's reason: of aiohttp's errors, or of requests' and httpx's."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_not_there(error: Exception) -> bool:
    """Returns True if the server answered "no such file".

    fsspec also raises FileNotFoundError if a web server does not answer. Only the error's cause shows the difference.
    """
    cause = error.__cause__
    return isinstance(error, FileNotFoundError) and (cause is None or isinstance(cause, FileNotFoundError))


def _append(system: Any, path: str, part: Part, on_bytes: Callable[[int], object]) -> None:
    """Appends missing bytes to `part`: of a web server in one request, of others block by block."""
    if is_web(path):
        append_from_web(system, path, part, on_bytes)
        return
    version = _version_now(system, path)
    if part.version is None or not part.version.is_same(version):
        part.begin(version)
    with part.path.open("ab") as out:
        if version.size is None:  # the server does not tell the file's length: all of it in one request
            out.truncate(0)
            out.write(system.cat_file(path))
            out.flush()
            _check_unchanged(system, path, part, version)
            on_bytes(out.tell())
            return
        while (start := out.tell()) < version.size:
            stop = min(start + BLOCK, version.size)
            data = system.cat_file(path, start=start, end=stop)
            if len(data) != stop - start:
                raise ConnectionError(
                    f"got {len(data)} bytes, expected {stop - start} from byte {start} of {version.size}"
                )
            _check_unchanged(system, path, part, version)
            out.write(data)
            out.flush()
            on_bytes(len(data))


def _version_now(system: Any, path: str) -> Version:
    """Asks for the version of a file. On github, the size may be that of a Git LFS pointer, so it is not known."""
    system.invalidate_cache()
    version = _version_from(system.info(path))
    return replace(version, size=None) if "github" in system.protocol else version


def _check_unchanged(system: Any, path: str, part: Part, version: Version) -> None:
    if _version_now(system, path) != version:
        part.drop()
        raise FileChanged("the file has changed on its server")
