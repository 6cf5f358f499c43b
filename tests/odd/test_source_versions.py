"""Versions of caption files on servers: what tells that a file is another one, or that it has changed."""

import pytest

from randcond.data.captions.caption_lists import read_unique
from randcond.data.captions.sources import identify
from tests.odd.server_cases import ranged
from tests.support.web import Request, reply, scripted

pytestmark = pytest.mark.usefixtures("short_waits")


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
