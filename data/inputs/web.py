"""Files of web servers, by fsspec's HTTP session. Each answer is checked before a byte of it is kept.

fsspec's own functions give the bytes without the answer's headers, which tell the version of the file, which bytes
these are, and whether they are the file or a page about it.
"""

import re
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import PurePosixPath
from typing import Any

from randcond.data.inputs.compressed import Unpacker
from randcond.data.inputs.part import FileChanged, Part, Version
from randcond.data.inputs.signatures import HEAD, kind_of_content
from randcond.launch.errors import UserError
from randcond.launch.urls import show_url

PAGES = ("text/html", "application/xhtml+xml")
PAGE_NAMES = (".html", ".htm", ".xhtml")
_TAG = re.compile(  # how a page may begin that is called one, and lacks <html>
    rb"(?:\xef\xbb\xbf)?\s*<(?:!--|\?xml|(?:head|title|meta|base|link|script|style|body|noscript|iframe|frameset|form|"
    rb"div|main|section|center|table|p|h[1-6]|pre|hr|br|img|a)[\s/>])",
    re.IGNORECASE,
)
_AGAIN = (408, 425, 429)  # errors of the 400s after which another try may succeed
_REFUSED = {
    401: "the server refuses access (401): it wants a user and a password, or these are wrong; put them into ~/.netrc",
    403: "the server refuses access (403): the user may not read this file, or a signed address is no longer valid",
    404: "the server has no such file (404)",
    407: "the proxy refuses access (407); check http_proxy and https_proxy",
    410: "the server has no such file any more (410)",
}
_GZIP = ("gzip", "x-gzip", "deflate")


class Busy(ConnectionError):
    """The server asks to come back later, in `seconds` if it says so."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


def check_status(url: str, status: int, headers: Mapping[str, str]) -> None:
    """Raises UserError if another try can't help, and ConnectionError if it may, for the status of an answer."""
    if status < 400:
        return
    if status in (429, 503):
        raise Busy(f"the server is busy ({status})", _seconds(headers.get("Retry-After", "")))
    if status in _AGAIN or status >= 500:
        raise ConnectionError(f"the server answers with status {status}")
    raise UserError(f"{show_url(url)}: {_REFUSED.get(status, f'the server refuses the request ({status})')}")


def _seconds(text: str) -> float | None:
    """Returns the seconds of a Retry-After header, which is a number or a date. None: there is none."""
    if text.isascii() and text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def check_is_data(url: str, name: str, kind: str, start: bytes) -> None:
    """Raises UserError if an HTML page came in place of a file.

    `name`: of the file. `kind`: the Content-Type that the server gives. `start`: the first HEAD bytes of the file. They
    decide, because some servers call every text a page.
    """
    if not _is_file_of_pages(name) and (kind_of_content(start) == "HTML" or (_is_page(kind) and _TAG.match(start))):
        raise UserError(
            f"{show_url(url)}: got an HTML page in place of the file {name}, perhaps a login page; open the address "
            f"in a browser, or give the address of the file itself"
        )


def _is_file_of_pages(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PAGE_NAMES


def _is_page(kind: str) -> bool:
    return kind.partition(";")[0].strip().lower() in PAGES


def version_on_web(system: Any, url: str, name: str) -> Version:
    """Asks a web server for the version of a file, and only if it may be a page for the first bytes.

    `system`: fsspec's file system. `name`: of the file. Raises as check_status() and check_is_data() do.
    """
    from fsspec.asyn import sync

    version: Version = sync(system.loop, _ask_version, system, url, name)
    return version


async def _ask_version(system: Any, url: str, name: str) -> Version:
    import aiohttp

    session = await system.set_session()
    with suppress(aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
        async with session.head(system.encode_url(url), allow_redirects=True, **_options(system)) as answer:
            version, kind = _version(answer), answer.headers.get("Content-Type", "")
            if answer.status < 400 and version.size is not None and (_is_file_of_pages(name) or not _is_page(kind)):
                return version
    # Addresses that are signed for reading refuse HEAD, and some servers tell no size there.
    async with session.get(system.encode_url(url), **_options(system, Range=f"bytes=0-{HEAD - 1}")) as answer:
        if answer.status == 416:  # an empty file has no first byte
            return Version(0, answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))
        check_status(url, answer.status, answer.headers)
        check_is_data(url, name, answer.headers.get("Content-Type", ""), (await _first_bytes(answer))[0])
        return _version(answer)


async def _first_bytes(answer: Any) -> tuple[bytes, Exception | None]:
    """Returns the first HEAD bytes of an answer's content, or those before the connection is lost, and that error."""
    start = b""
    try:
        while len(start) < HEAD and (more := await answer.content.read(HEAD - len(start))):
            start += more
    except Exception as error:  # raised again after what has arrived is kept
        return start, error
    return start, None


def _options(system: Any, **headers: str) -> dict[str, Any]:
    """Returns the arguments of a request: those that the user has set for fsspec, and our headers."""
    options = dict(system.kwargs)
    own = {"Accept-Encoding": "identity", **headers}  # ranges count the bytes of the file, not of a compressed answer
    return {**options, "headers": {**options.get("headers", {}), **own}}


def _version(answer: Any) -> Version:
    headers = answer.headers
    if answer.status == 206:
        size = _content_range(headers)[2] if not _encoding(headers) else None
    else:
        length = headers.get("Content-Length", "")
        size = int(length) if length.isdigit() and not _encoding(headers) else None
    return Version(size, headers.get("ETag", ""), headers.get("Last-Modified", ""))


def _encoding(headers: Mapping[str, str]) -> str:
    encoding = headers.get("Content-Encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def _content_range(headers: Mapping[str, str]) -> tuple[int, int, int | None]:
    """Returns first byte, byte after the last, and size of the file (None: unknown) of an answer with status 206."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers.get("Content-Range", "").strip())
    if match is None:
        raise ConnectionError(f"the server sends a part of the file, but says {headers.get('Content-Range')!r} of it")
    return int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3])


def append_from_web(system: Any, url: str, part: Part, on_bytes: Callable[[int], object]) -> None:
    """Asks a web server for the missing bytes of a file in one request, and appends what arrives to `part`.

    Less than the whole rest may arrive: `part.complete` tells. Raises UserError if another try can't help,
    FileChanged if the server has another version now, and other errors if the connection is lost.
    """
    from fsspec.asyn import sync

    sync(system.loop, _append, system, url, part, on_bytes)


async def _append(system: Any, url: str, part: Part, on_bytes: Callable[[int], object]) -> None:
    headers = {}
    if start := _first_missing(part):
        assert part.version is not None
        headers = {"Range": f"bytes={start}-", "If-Range": part.version.condition}
    session = await system.set_session()
    async with session.get(system.encode_url(url), auto_decompress=False, **_options(system, **headers)) as answer:
        if answer.status == 416:
            part.drop()
            raise FileChanged("the server no longer has the missing bytes")
        check_status(url, answer.status, answer.headers)
        if answer.status == 206:
            await _write(answer, part, b"", None, _check_range(answer, part, start), on_bytes)
        elif answer.status == 200:
            # The first request, another version, or a server that ignores ranges.
            unpacker = Unpacker() if _is_packed(answer, part) else None
            data, lost = await _first_bytes(answer)
            content = _unpacked(unpacker, data) if unpacker else data
            check_is_data(url, part.target.name, answer.headers.get("Content-Type", ""), content)
            part.begin(Version() if unpacker else _version(answer))  # ranges don't fit what is unpacked
            await _write(answer, part, content, unpacker, None, on_bytes)
            if lost:
                raise lost
        else:
            raise ConnectionError(f"the server answers with status {answer.status}")


def _first_missing(part: Part) -> int:
    """Returns the first byte to ask for; 0: the whole file.

    One byte at least is asked for, so that the server tells its version also if all bytes have arrived.
    """
    size = part.size
    if not part.ranges or part.version is None or not part.version.condition or size < 2:
        return 0
    return size - 1 if part.version.size is not None and size >= part.version.size else size


def _check_range(answer: Any, part: Part, start: int) -> int:
    """Prepares `part` for an answer with a range. Returns the byte after its last one.

    Raises FileChanged if the range is of another version, and ConnectionError if it is not the range asked for.
    """
    try:
        first, end, size = _content_range(answer.headers)
        if not start or first != start or end <= first or _encoding(answer.headers):
            raise ConnectionError(f"the server sends bytes {first} to {end - 1}, but those from {start} were asked for")
    except ConnectionError:
        part.ranges = False  # the next try asks for the whole file
        raise
    version = _version(answer)
    assert part.version is not None
    told = version if version.etag or version.modified else part.version
    known = part.version.size if size is None else size
    if not part.version.is_same(replace(told, size=known)):
        part.drop()
        raise FileChanged("the server has another version of the file now")
    if known is None:
        part.ranges = False
        raise ConnectionError("the server sends a part of the file, but does not say how long the file is")
    part.version = replace(part.version, size=known)
    part.cut(start)
    return end


def _is_packed(answer: Any, part: Part) -> bool:
    """Returns True if the answer must be unpacked to be the file. A .gz file is what some servers call encoded.

    Raises UserError if it can't be unpacked.
    """
    encoding = _encoding(answer.headers)
    if not encoding or (encoding in ("gzip", "x-gzip") and part.target.suffix.lower() in (".gz", ".tgz")):
        return False
    if encoding not in _GZIP:
        raise UserError(
            f"{part.shown}: the server sends the file in encoding {encoding}, although none was asked for; "
            f"download it by other means"
        )
    return True


def _unpacked(unpacker: Unpacker, data: bytes) -> bytes:
    try:
        return unpacker.add(data)
    except zlib.error as error:
        raise ConnectionError(f"the compressed answer is damaged ({error})") from None


async def _write(
    answer: Any,
    part: Part,
    start: bytes,
    unpacker: Unpacker | None,
    end: int | None,
    on_bytes: Callable[[int], object],
) -> None:
    """Appends `start` and then the content of an answer to the part. `end`: the byte after its last one, if known."""
    with part.path.open("ab") as out:
        out.write(start)
        on_bytes(len(start))
        async for data in answer.content.iter_any():
            content = _unpacked(unpacker, data) if unpacker else data
            if end is not None:
                content = content[: max(0, end - out.tell())]
            out.write(content)
            on_bytes(len(content))
    if unpacker and not unpacker.whole:
        raise ConnectionError("the compressed answer has no end")
