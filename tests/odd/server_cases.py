"""Odd servers: each case is a server, and the file that must come of it, or what the error says."""

import gzip
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate

import numpy as np

from tests.support.web import Request, reply

DATA = np.random.default_rng(1).bytes(300_000)
OTHER = np.random.default_rng(2).bytes(300_000)
DATE = formatdate(1_000_000_000, usegmt=True)
CSV = b"caption,url\n" + b"a cat,https://host/<html>\n" * 500
PAGE = b"<!DOCTYPE html>\n<html><title>Sign in</title><body>password?</body></html>"
CUT = 200_000  # more than the client reads ahead of what it keeps
Script = Callable[[], Callable[[Request], bytes]]


def ranged(request: Request, data: bytes, most: int | None = None, **headers: str | None) -> bytes:
    """Answers as a right server does: a range if one is asked for and the version is the same, else the whole file."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    known = {headers.get("ETag"), headers.get("Last_Modified")} - {None}
    if match is None or request.headers.get("if-range") not in {None, *known}:
        return reply(data, **headers)
    first = int(match[1])
    part = data[first : first + most if most else None]
    return reply(part, 206, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(data)}", **headers)


def cut_first(**headers: str | None) -> Script:
    """A server that cuts the first answer, and is right from then on."""

    def script() -> Callable[[Request], bytes]:
        numbers = itertools.count()
        return lambda request: (
            reply(DATA, cut=CUT, **headers) if next(numbers) == 0 else ranged(request, DATA, **headers)
        )

    return script


def then(*answers: bytes | Callable[[Request], bytes]) -> Script:
    """A server that gives these answers one after the other, the last one again and again."""

    def script() -> Callable[[Request], bytes]:
        left = list(answers)

        def answer(request: Request) -> bytes:
            given = left.pop(0) if len(left) > 1 else left[0]
            return given if isinstance(given, bytes) else given(request)

        return answer

    return script


def always(answer: Callable[[Request], bytes]) -> Script:
    """A server whose answer depends on the request only."""
    return lambda: answer


def changing() -> Callable[[Request], bytes]:
    """A server that has another version at each request, and cuts each answer."""
    numbers = itertools.count()
    return lambda request: reply(DATA, cut=CUT, ETag=f'"{next(numbers)}"')


def chunked(data: bytes, whole: bool = True, **headers: str | None) -> bytes:
    """An answer in chunks, which does not say its length. `whole`: its last chunk is sent."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:CUT], data[CUT:])) + b"0\r\n\r\n"
    return reply(body, cut=None if whole else CUT, Content_Length=None, Transfer_Encoding="chunked", **headers)


def first(request: Request) -> int:
    """Returns the first byte that is asked for."""
    return int(request.headers["range"].removeprefix("bytes=").partition("-")[0])


@dataclass(frozen=True)
class Case:
    """A server, and the right outcome: the file's content, or the error's text (a pattern)."""

    name: str
    script: Script
    outcome: bytes | str
    ranges: list[str | None] = field(default_factory=list)  # Range header of each request; empty: not checked
    file: str = "file.bin"
    requests: int | None = None


ENCODED = gzip.compress(DATA)
MEMBERS = gzip.compress(DATA[:70_000]) + gzip.compress(b"") + gzip.compress(DATA[70_000:])
E1 = {"ETag": '"1"'}
CASES = [
    Case("one whole answer", always(lambda r: ranged(r, DATA, **E1)), DATA, [None]),
    Case("an empty file", then(reply(b"", **E1)), b"", [None]),
    Case("a cut, strong ETag: goes on", cut_first(**E1), DATA, [None, "goes on"]),
    Case("a cut, size and time of change: goes on", cut_first(Last_Modified=DATE), DATA, [None, "goes on"]),
    Case("a cut, weak ETag: anew", cut_first(ETag='W/"1"'), DATA, [None, None]),
    Case("a cut, weak ETag and time: goes on", cut_first(ETag='W/"1"', Last_Modified=DATE), DATA, [None, "goes on"]),
    Case("a cut, a server that says nothing: anew", cut_first(), DATA, [None, None]),
    Case(
        "another version after a cut",
        then(reply(DATA, cut=CUT, **E1), lambda r: ranged(r, OTHER, ETag='"2"')),
        OTHER,
        [None, "goes on"],
    ),
    Case(
        "another version after a cut, If-Range ignored",
        then(
            reply(DATA, cut=CUT, **E1),
            lambda r: ranged(r._replace(headers={**r.headers, "if-range": '"2"'}), OTHER, ETag='"2"'),
        ),
        OTHER,
        [None, "goes on", None],
    ),
    Case(
        "a size that changes, no ETag in the range",
        then(
            reply(DATA, cut=CUT, **E1),
            lambda r: ranged(r._replace(headers={"range": r.headers["range"]}), OTHER + b"more"),
            reply(OTHER + b"more", **E1),
        ),
        OTHER + b"more",
        [None, "goes on", None],
    ),
    Case("a file that keeps changing", lambda: changing(), "failed after .* tries"),
    Case("ranges are ignored", then(reply(DATA, cut=CUT, **E1), reply(DATA, **E1)), DATA, [None, "goes on"]),
    Case(
        "a range of other bytes",
        then(
            reply(DATA, cut=CUT, **E1),
            lambda r: reply(DATA[:100], 206, Content_Range=f"bytes 0-99/{len(DATA)}", **E1),
            reply(DATA, **E1),
        ),
        DATA,
        [None, "goes on", None],
    ),
    Case(
        "ranges that are shorter than asked for",
        then(reply(DATA, cut=CUT, **E1), lambda r: ranged(r, DATA, most=20_000, **E1)),
        DATA,
    ),
    Case(
        "a part that does not say which",
        then(reply(DATA, cut=CUT, **E1), reply(DATA[CUT:], 206, **E1), reply(DATA, **E1)),
        DATA,
        [None, "goes on", None],
    ),
    Case("the rest does not exist", then(reply(DATA, cut=CUT, **E1), reply(b"", 416), reply(DATA, **E1)), DATA),
    Case("always fewer bytes than said", then(reply(DATA, cut=CUT)), "failed after 4 tries", [None] * 4),
    Case("more bytes than said", then(reply(DATA + b"more", Content_Length=str(len(DATA)))), DATA),
    Case("gzip although none was asked for", then(reply(ENCODED, Content_Encoding="gzip", **E1)), DATA),
    Case("gzip of a .gz file", then(reply(ENCODED, Content_Encoding="gzip")), ENCODED, file="captions.txt.gz"),
    Case(
        "gzip that is cut",
        then(reply(ENCODED, cut=CUT, Content_Encoding="gzip", **E1), reply(ENCODED, Content_Encoding="gzip", **E1)),
        DATA,
        [None, None],
    ),
    Case(
        "gzip without its end",
        then(reply(ENCODED[:CUT], Content_Encoding="gzip"), reply(DATA)),
        DATA,
        [None, None],
    ),
    Case(
        "gzip of several members",
        then(reply(MEMBERS, Content_Encoding="gzip", **E1)),
        DATA,
    ),
    Case("gzip of several members, padded", then(reply(MEMBERS + bytes(512), Content_Encoding="gzip")), DATA),
    Case(
        "gzip whose second member is cut",
        then(reply(MEMBERS[:-99], Content_Encoding="gzip"), reply(MEMBERS, Content_Encoding="gzip")),
        DATA,
        [None, None],
    ),
    Case(
        "gzip with noise after it",
        then(reply(ENCODED + b"noise", Content_Encoding="gzip")),
        r"failed after 4 tries \(the compressed answer is damaged",
    ),
    Case("gzip of a .GZ file", then(reply(ENCODED, Content_Encoding="x-gzip")), ENCODED, file="captions.txt.GZ"),
    Case("br, which nobody asked for", then(reply(DATA, Content_Encoding="br")), "in encoding br", requests=1),
    Case("chunks without a length", then(chunked(DATA)), DATA),
    Case("chunks that are cut", then(chunked(DATA, whole=False), chunked(DATA)), DATA, [None, None]),
    Case(
        "chunks that are cut, a time of change: anew",
        then(chunked(DATA, whole=False, Last_Modified=DATE), lambda r: ranged(r, OTHER, Last_Modified=DATE)),
        OTHER,
        [None, None],
    ),
    Case(
        "chunks that are always cut, a time of change",
        then(chunked(DATA, whole=False, Last_Modified=DATE)),
        "failed after 4 tries",
        [None] * 4,
    ),
    Case(
        "chunks that are cut, strong ETag: goes on",
        then(chunked(DATA, whole=False, **E1), lambda r: ranged(r, DATA, **E1)),
        DATA,
        [None, "goes on"],
    ),
    Case(
        "chunks that are cut, another version after it",
        then(chunked(DATA, whole=False, **E1), lambda r: ranged(r, OTHER, ETag='"2"')),
        OTHER,
        [None, "goes on"],
    ),
    Case(
        "chunks that are cut, a part of a file of unknown length",
        then(
            chunked(DATA, whole=False, **E1),
            lambda r: reply(DATA[first(r) :][:99], 206, Content_Range=f"bytes {first(r)}-{first(r) + 98}/*", **E1),
            chunked(DATA, **E1),
        ),
        DATA,
        [None, "goes on", None],
    ),
    Case(
        "a part of a file of unknown length after a cut",
        then(
            reply(DATA, cut=CUT, **E1),
            lambda r: reply(DATA[first(r) :], 206, Content_Range=f"bytes {first(r)}-{len(DATA) - 1}/*", **E1),
        ),
        DATA,
        [None, "goes on"],
    ),
    Case("a csv that is called a page", then(reply(CSV, Content_Type="text/html")), CSV, file="a.csv", requests=1),
    Case("a jsonl that is called a page", then(reply(b'{"a": 1}\n', Content_Type="text/html")), b'{"a": 1}\n'),
    Case("markup that is called plain", then(reply(b"<b>x</b>\n", Content_Type="text/plain")), b"<b>x</b>\n"),
    Case("xhtml", then(reply(b'<?xml version="1.0"?>\n<html xmlns="x">')), "an HTML page"),
    Case("a page without <html>", then(reply(b"<head><title>Sign in", Content_Type="text/html")), "an HTML page"),
    Case("a page after 2,000 comments", then(reply(b"<!---->" * 2000 + b"x")), b"<!---->" * 2000 + b"x"),
    Case("a page in place of the rest", then(reply(DATA, cut=CUT, **E1), reply(PAGE)), "an HTML page", requests=2),
    Case("a page by its type", then(reply(PAGE, Content_Type="text/html; charset=utf-8")), "an HTML page", requests=1),
    Case("a page by its first bytes", then(reply(PAGE)), "an HTML page in place of the file file.bin", requests=1),
    Case("a page after blanks and a comment", then(reply(b"\n <!-- x -->\n<HTML lang=en>")), "an HTML page"),
    Case("a page that is wanted", then(reply(PAGE, Content_Type="text/html")), PAGE, file="page.html"),
    Case("401", then(reply(PAGE, 401)), r"refuses access \(401\)", requests=1),
    Case("403", then(reply(PAGE, 403)), r"refuses access \(403\)", requests=1),
    Case("404", then(reply(PAGE, 404)), r"no such file \(404\)", requests=1),
    Case("410", then(reply(PAGE, 410)), r"no such file any more \(410\)", requests=1),
    Case("400", then(reply(b"", 400)), r"refuses the request \(400\)", requests=1),
    Case("busy twice, 429", then(*[reply(b"", 429, Retry_After="0")] * 2, reply(DATA)), DATA),
    Case("busy until a date that is over", then(reply(b"", 503, Retry_After=DATE), reply(DATA)), DATA),
    Case("busy until no date", then(reply(b"", 503, Retry_After="\xb2"), reply(DATA)), DATA),
    Case(
        "busy until the year 9999",
        then(reply(b"", 503, Retry_After="Fri, 31 Dec 9999 23:59:59 -2300")),
        "asks to wait|failed after 4 tries",
    ),
    Case(
        "a part with 5,000 digits",
        then(reply(DATA, cut=CUT, **E1), reply(b"x", 206, Content_Range=f"bytes 1-2/{'9' * 5000}"), reply(DATA)),
        DATA,
        [None, "goes on", None],
    ),
    Case("busy for an hour", then(reply(b"", 503, Retry_After="3600")), "asks to wait for 3600 s", requests=1),
    Case("errors of the server, then the file", then(reply(b"", 500), reply(b"", 502), reply(DATA)), DATA),
    Case("a success without a file", then(reply(b"", 204)), "failed after 4 tries .*status 204"),
    Case(
        "a redirect to itself",
        then(reply(b"", 302, Location="/file.bin")),
        "redirects in a circle",
        file="file.bin",
    ),
]
