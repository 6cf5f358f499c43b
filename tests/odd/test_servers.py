"""Odd servers: half-fetched files, versions that change, pages for files, refusals, wrong ranges and lengths."""

import base64
import gzip
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest

from randcond.data.captions.caption_lists import read_unique
from randcond.data.captions.sources import expand, identify
from randcond.data.inputs import fetch as fetching
from randcond.data.inputs.fetch import FetchError, fetch
from randcond.data.inputs.part import Part, Version
from randcond.launch.errors import UserError
from tests.support.web import Request, reply, scripted, served

DATA = np.random.default_rng(1).bytes(300_000)
OTHER = np.random.default_rng(2).bytes(300_000)
DATE = formatdate(1_000_000_000, usegmt=True)
PAGE = b"<!DOCTYPE html>\n<html><title>Sign in</title><body>password?</body></html>"
CUT = 200_000  # more than the client reads ahead of what it keeps
Script = Callable[[], Callable[[Request], bytes]]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.001)
    monkeypatch.setattr(fetching, "TRIES", 4)


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


def chunked(data: bytes, whole: bool = True) -> bytes:
    """An answer in chunks, which does not say its length. `whole`: its last chunk is sent."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:CUT], data[CUT:])) + b"0\r\n\r\n"
    return reply(body, cut=None if whole else CUT, Content_Length=None, Transfer_Encoding="chunked")


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
    Case("br, which nobody asked for", then(reply(DATA, Content_Encoding="br")), "in encoding br", requests=1),
    Case("chunks without a length", then(chunked(DATA)), DATA),
    Case("chunks that are cut", then(chunked(DATA, whole=False), chunked(DATA)), DATA, [None, None]),
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


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_file_is_right_or_the_error_is_clear(case: Case, tmp_path: Path) -> None:
    target = tmp_path / case.file
    with scripted(case.script()) as (url, requests):
        if isinstance(case.outcome, bytes):
            assert fetch(f"{url}/{case.file}", target).read_bytes() == case.outcome
            assert [path.name for path in tmp_path.iterdir()] == [case.file]  # no part, no note
        else:
            with pytest.raises((UserError, FetchError), match=case.outcome) as raised:
                fetch(f"{url}/{case.file}?sig=planted-secret", target)
            assert f"{url}/{case.file}?..." in str(raised.value) and "planted" not in str(raised.value)
            assert not target.exists()
    if case.ranges:
        asked = [request.headers.get("range") for request in requests]
        assert len(asked) == len(case.ranges)
        for said, expected in zip(asked, case.ranges, strict=True):
            assert (said is None) == (expected is None)
            assert said is None or 0 < int(said[6:-1]) <= CUT
    assert case.requests in (None, len(requests))


def half(folder: Path, url: str, version: Version | None, data: bytes = DATA) -> Path:
    """Leaves a half-fetched file as a killed process does. Returns the target."""
    target = folder / "file.bin"
    part = Part(target, url)
    part.begin(version or Version())
    part.path.write_bytes(data[:CUT])
    if version is None:
        target.with_name("file.bin.part.json").unlink()
    return target


V1 = Version(len(DATA), '"1"', DATE)
HALVES = {  # what is there -> whether the download goes on from it
    "the same version": (V1, "/file.bin", DATA, True),
    "the same file with a fresh signed query": (V1, "/file.bin?sig=old", DATA, True),
    "another version": (Version(len(DATA), '"0"', DATE), "/file.bin", OTHER, False),
    "another size": (Version(7, "", DATE), "/file.bin", OTHER, False),
    "another address": (V1, "/other.bin", OTHER, False),
    "no note, as of an older version": (None, "/file.bin", OTHER, False),
    "a version that can't be compared": (Version(len(DATA)), "/file.bin", OTHER, False),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_half_fetched_file_goes_on_only_if_it_is_the_same(name: str, tmp_path: Path) -> None:
    version, path, data, goes_on = HALVES[name]
    with scripted(lambda request: ranged(request, DATA, ETag='"1"', Last_Modified=DATE)) as (url, requests):
        target = half(tmp_path, f"{url}{path}", version, data)
        arrived: list[int] = []
        fetch(f"{url}/file.bin{'?sig=fresh' if '?' in path else ''}", target, on_bytes=arrived.append)
    assert target.read_bytes() == DATA and len(requests) <= 2
    assert sum(arrived) == (len(DATA) - CUT if goes_on else len(DATA))


def test_a_note_that_is_damaged_starts_anew_and_a_whole_part_needs_one_byte(tmp_path: Path) -> None:
    with scripted(lambda request: ranged(request, DATA, ETag='"1"')) as (url, requests):
        for note in ("", "{", "[]", '{"url": 3}', json.dumps({"url": url, "version": {"size": "x"}})):
            target = half(tmp_path, f"{url}/file.bin", V1, OTHER)
            target.with_name("file.bin.part.json").write_text(note)
            assert fetch(f"{url}/file.bin", target).read_bytes() == DATA
        requests.clear()
        target = half(tmp_path, f"{url}/file.bin", Version(len(DATA), '"1"'))
        target.with_name("file.bin.part").write_bytes(DATA)
        assert fetch(f"{url}/file.bin", target).read_bytes() == DATA
    assert requests[0].headers["range"] == f"bytes={len(DATA) - 1}-" and len(requests) == 1


BASIC = "Basic " + base64.b64encode(b"me:planted-password").decode()


@pytest.mark.parametrize("way", ["the address", "~/.netrc"])
def test_a_redirect_to_another_host_goes_without_credentials(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password planted-password\n")
    monkeypatch.setenv("NETRC", str(netrc) if way == "~/.netrc" else "/nowhere")
    with scripted(lambda request: reply(DATA)) as (other, there):
        moved = {"/same": "/file.bin", "/other": f"{other}/file.bin"}

        def answer(request: Request) -> bytes:
            if request.headers.get("authorization") != BASIC:
                return reply(b"", 401)
            to = moved.get(request.path)
            cookie = {"Set_Cookie": "session=planted; Path=/"}
            return reply(b"", 302, Location=to, **cookie) if to else reply(DATA)

        with scripted(answer) as (first, here):
            port = first.rpartition(":")[2]
            user = "me:planted-password@" if way == "the address" else ""
            for path in ("same", "other"):
                assert fetch(f"http://{user}localhost:{port}/{path}", tmp_path / path).read_bytes() == DATA
    assert [request.path for request in here] == ["/same", "/file.bin", "/other"]
    assert {"authorization", "cookie"} & set(there[0].headers) == set() and len(there) == 1


def test_a_wrong_password_is_said_once_without_it(tmp_path: Path) -> None:
    with scripted(lambda request: reply(PAGE, 401, Content_Type="text/html")) as (url, requests):
        address = url.replace("://", "://me:planted-password@") + "/a.csv?sig=planted-query"
        for read in (lambda: expand(address), lambda: identify(address), lambda: read_unique([address])):
            with pytest.raises(UserError, match=r"/a\.csv\?\.\.\.: the server refuses access \(401\)") as raised:
                read()
            assert "planted" not in str(raised.value)
    assert len(requests) == 6  # each HEAD and GET once


def test_an_address_that_is_none_is_an_error_at_once(tmp_path: Path) -> None:
    for address in ("http://me:planted/pass@host/a.csv", "http://[::1/a.csv"):
        with pytest.raises(UserError) as raised:
            fetch(address, tmp_path / "a.csv")
        assert "planted" not in str(raised.value)
    with pytest.raises(UserError, match=r"query of this address was taken off .*\$\{NAME\}"):
        fetch("http://127.0.0.1:9/a.csv?...", tmp_path / "a.csv")
    with pytest.raises(UserError, match="environment variable RANDCOND_NOT_SET is not set"):
        fetch("http://127.0.0.1:9/a.csv?${RANDCOND_NOT_SET}", tmp_path / "a.csv")


def test_addresses_that_differ_in_their_query_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = {"a": b"caption\none\n", "b": b"caption\ntwo\n"}

    def with_etag(request: Request) -> bytes:
        name = request.path.rpartition("=")[2]
        return ranged(request, captions[name], ETag=f'"{name}"')

    def without(request: Request) -> bytes:
        return reply(captions[request.path.rpartition("=")[2]])

    for answer in (with_etag, without):
        with scripted(answer) as (url, _):
            found = {name: identify(f"{url}/get.csv?sig=planted-secret&file={name}") for name in captions}
            again = identify(f"{url}/get.csv?sig=a-fresh-one&file=a")
        assert found["a"] == again != found["b"]
        assert "planted" not in str(found) and found["a"]["url"] == f"{url}/get.csv?..."
        assert ("sha256" in found["a"]) == (answer is without)
    monkeypatch.setenv("QUERY", "file=b")
    with scripted(without) as (url, _):
        assert read_unique([f"{url}/get.csv?${{QUERY}}"])[0] == ["two"]


def test_a_folder_of_files_that_needs_a_password(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()

    def answer(request: Request) -> bytes:
        if request.headers.get("authorization") != BASIC:
            return reply(b"", 401)
        if request.path == "/x/":
            return reply(b'<a href="a.csv">a</a> <a href="b.txt">b</a>', Content_Type="text/html")
        files = {"/x/a.csv": b"caption\none\n", "/x/b.txt": b"two\n"}
        return reply(files[request.path]) if request.path in files else reply(b"", 404)

    with scripted(answer) as (url, _):
        assert read_unique([url.replace("://", "://me:planted-password@") + "/x/"])[0] == ["one", "two"]
        with pytest.raises(UserError, match=r"/x/: the server refuses access \(401\)"):
            read_unique([f"{url}/x/"])


def test_a_shard_server_that_sends_its_login_page_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(PAGE)
    with served(tmp_path) as url, pytest.raises(UserError, match=r"/manifest\.json: got an HTML page .*login page"):
        fetch(f"{url}/manifest.json", tmp_path / "copy/manifest.json")
