"""Versions of caption files on servers: what tells that a file is another one, or that it has changed."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.github import GithubFileSystem

from randcond.data.captions.caption_lists import read_unique
from randcond.data.captions.source_identity import as_expected
from randcond.data.captions.sources import expand, identify
from randcond.data.inputs.fetch import fetch
from randcond.launch.errors import UserError
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


LFS = b"caption\n" + b"a caption of a file that Git LFS keeps\n" * 50
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2000\n"


class Repository:
    """A repository with a folder of files, on scripted servers that speak as the hub and as github do."""

    def __init__(self) -> None:
        self.files = {"a.csv": b"caption\none\n", "b.csv": b"caption\ntwo\n"}
        self.after_reading: Callable[[], object] = lambda: None
        self.url = ""

    def _json(self, data: Any) -> bytes:
        return reply(json.dumps(data).encode(), Content_Type="application/json")

    def _hash(self, name: str) -> str:
        return hashlib.sha1(self.files[name]).hexdigest()

    def _content(self, request: Request, name: str) -> bytes:
        answer = ranged(request, self.files[name])
        self.after_reading()
        return answer

    def hub(self, request: Request) -> bytes:
        path = request.path.partition("?")[0]
        if path == "/api/datasets/u/n":
            return self._json({"id": "u/n", "sha": "1"})
        if path == "/api/datasets/u/n/tree/main":
            return self._json([{"type": "directory", "path": "x", "oid": "1"}])
        if path == "/api/datasets/u/n/tree/main/x":
            facts = {
                name: {"type": "file", "path": f"x/{name}", "size": len(data)} for name, data in self.files.items()
            }
            return self._json([{**entry, "oid": self._hash(name)} for name, entry in facts.items()])
        if path.startswith("/datasets/u/n/resolve/main/x/"):
            return self._content(request, path.rpartition("/")[2])
        return reply(b"{}", 404)

    def github(self, request: Request) -> bytes:
        path = request.path.partition("?")[0]
        if path == "/o/n/trees/main":
            return self._json({"tree": [{"path": "x", "mode": "0", "type": "tree", "sha": "x1"}]})
        if path == "/o/n/trees/x1":
            kinds = {name: {"path": name, "mode": "0", "type": "blob", "size": 12} for name in self.files}
            return self._json({"tree": [{**entry, "sha": self._hash(name)} for name, entry in kinds.items()]})
        if path.startswith("/o/n/contents/x/"):
            name = path.rpartition("/")[2]
            inside = POINTER if self.files[name] is LFS else self.files[name]
            answer = self._json(
                {"content": base64.b64encode(inside).decode(), "download_url": f"{self.url}/raw/{name}"}
            )
            self.after_reading()
            return answer
        return ranged(request, self.files[path.rpartition("/")[2]]) if path.startswith("/raw/") else reply(b"", 404)


@pytest.fixture(params=["hf", "github"])
def repository(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Repository]]:
    """A repository and the URL of its folder, which fsspec's own clients ask."""
    found = Repository()
    with scripted(found.hub if request.param == "hf" else found.github) as (url, _):
        found.url = url
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": url})
        monkeypatch.setattr(GithubFileSystem, "url", url + "/{org}/{repo}/trees/{sha}")
        monkeypatch.setattr(GithubFileSystem, "content_url", url + "/{org}/{repo}/contents/{path}?ref={sha}")
        GithubFileSystem.clear_instance_cache()
        yield {"hf": "hf://datasets/u/n/x", "github": "github://o:n@main/x"}[request.param], found
        GithubFileSystem.clear_instance_cache()


def test_a_file_of_a_repository_that_changes_is_noticed(repository: tuple[str, Repository]) -> None:
    """The change keeps the size. What an older version stored of the source is still accepted."""
    folder, files = repository
    assert expand(f"{folder}/*.csv") == expand(folder) == [f"{folder}/a.csv", f"{folder}/b.csv"]
    before = identify(f"{folder}/a.csv")
    assert read_unique([folder])[0] == ["one", "two"]
    stored = {key: before[key] for key in ("name", "url", "size")}
    assert as_expected([stored], [before]) == [before]
    files.files["a.csv"] = b"caption\nsix\n"
    assert expand(f"{folder}/a.csv") == [f"{folder}/a.csv"]
    after = identify(f"{folder}/a.csv")
    assert before != after and before["size"] == after["size"] and as_expected([before], [after]) == [before]
    assert read_unique([f"{folder}/a.csv"])[0] == ["six"]


def test_a_file_of_a_repository_that_changes_while_it_is_read(
    repository: tuple[str, Repository], tmp_path: Path
) -> None:
    folder, files = repository
    files.after_reading = lambda: files.files.update({"a.csv": b"caption\nsix\n"})
    assert fetch(f"{folder}/a.csv", tmp_path / "a.csv").read_bytes() == b"caption\nsix\n"


def test_a_file_that_git_lfs_keeps_is_read_whole(repository: tuple[str, Repository], tmp_path: Path) -> None:
    """On github, the size that is told is that of the pointer."""
    folder, files = repository
    files.files["a.csv"] = LFS
    assert fetch(f"{folder}/a.csv", tmp_path / "a.csv").read_bytes() == LFS


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("github://o:none@main/a.csv", "no such file"),
        ("github://a.csv", "missing 2 required"),
        ("hf://datasets/u/none/a.csv", "no such file"),
    ],
)
def test_a_repository_that_is_not_there_is_an_error_at_once(
    repository: tuple[str, Repository], source: str, said: str
) -> None:
    with pytest.raises(UserError, match=rf"{source}: .*{said}"):
        expand(source)
