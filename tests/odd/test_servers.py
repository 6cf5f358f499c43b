"""Odd servers: half-fetched files, versions that change, pages for files, refusals, wrong ranges and lengths."""

import json
from pathlib import Path

import pytest

from randcond.data.inputs.fetch import FetchError, fetch
from randcond.data.inputs.part import Part, Version
from randcond.launch.errors import UserError
from tests.odd.server_cases import CASES, CUT, DATA, DATE, OTHER, PAGE, Case, ranged
from tests.support.web import reply, scripted, served

pytestmark = pytest.mark.usefixtures("short_waits")


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


def test_a_page_in_place_of_the_rest_does_not_cost_the_part(tmp_path: Path) -> None:
    """A server that wants a login for an hour: after it the download goes on."""
    away = [True]
    with scripted(lambda r: reply(PAGE) if away else ranged(r, DATA, ETag='"1"', Last_Modified=DATE)) as (url, _):
        target = half(tmp_path, f"{url}/file.bin", V1)
        with pytest.raises(UserError, match="an HTML page"):
            fetch(f"{url}/file.bin", target)
        away.clear()
        arrived: list[int] = []
        assert fetch(f"{url}/file.bin", target, on_bytes=arrived.append).read_bytes() == DATA
    assert sum(arrived) == len(DATA) - CUT


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


def test_a_shard_server_that_sends_its_login_page_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(PAGE)
    with served(tmp_path) as url, pytest.raises(UserError, match=r"/manifest\.json: got an HTML page .*login page"):
        fetch(f"{url}/manifest.json", tmp_path / "copy/manifest.json")
