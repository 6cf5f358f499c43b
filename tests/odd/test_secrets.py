"""Secrets of URLs and of the environment: nothing that is written or printed holds them."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from randcond.data.cache import cache_plan, caching, manifest
from randcond.data.captions.pool import build, build_pool, check_pool_identity, open_pool
from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, write_json
from tests.support import warm
from tests.support.demo import TINY, randcond
from tests.support.endpoint import scripted as scripted_model
from tests.support.web import Request, reply, scripted


def captions_server(data: dict[str, bytes]) -> Callable[[Request], bytes]:
    """Serves files with an ETag to those who send a password and a signed query."""

    def answer(request: Request) -> bytes:
        path, _, query = request.path.partition("?")
        name = path.rpartition("/")[2]
        if "authorization" not in request.headers or (query and "sig=" not in query):
            return reply(b"<html>sign in</html>", 401, Content_Type="text/html")
        return reply(data[name], ETag=f'"{name}"') if name in data else reply(b"", 404)

    return answer


def test_a_pool_of_an_older_version_is_used_and_loses_its_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"a.csv": b"caption\none\ntwo\n", "b.csv": b"caption\nthree\n"}
    with scripted(captions_server(files)) as (url, _):
        address = url.replace("://", "://me:planted@") + "/a.csv?sig=planted"
        words = [f'pool.sources=["{address}"]', f"paths.pool={tmp_path}/pool"]
        config = load_config("demo-with", words)
        made = build_pool(config)
        older = json.loads(json.dumps(made))
        older["sources"][0]["url"] = address
        older["asked"]["sources"] = ["a.csv?sig=planted"]
        older["damaged"] = {address: f"caption source {address}, line 3: broken"}
        write_json(tmp_path / "pool/manifest.json", older)
        (tmp_path / "pool/config.yaml").write_text(f"pool:\n  sources:\n  - {address}\n")
        capsys.readouterr()
        fresh = load_config("demo-with", [words[0].replace("sig=planted", "sig=fresh"), *words[1:]])
        build_pool(fresh)
        assert "manifest.json: held a password or a query of a URL; written again" in capsys.readouterr().out
        assert "planted" not in (tmp_path / "pool/manifest.json").read_text()
        check_pool_identity(fresh)
        assert len(open_pool(tmp_path / "pool")) == 2
        with pytest.raises(UserError, match=r"the pool at .* does not match this experiment") as raised:
            build(tmp_path / "pool", [address.replace("a.csv", "b.csv")])
        assert "planted" not in str(raised.value)


@pytest.mark.heavy
def test_a_cache_of_an_older_version_is_used_and_loses_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards hold a hash of the plan with the secret; no shard is drawn again."""
    folder = tmp_path / "cache"
    captions = (Path(caching.__file__).parents[1] / "digits/captions.txt").read_bytes()
    with scripted(captions_server({"captions.txt": captions})) as (url, _):
        address = url.replace("://", "://me:planted@") + "/captions.txt?sig=planted"
        words = [*TINY, f'cache.captions=["{address}"]', f"paths.cache={folder}", "cache.size=32"]
        older = _with_name(cache_plan.cache_identity, "captions.txt?sig=planted")
        monkeypatch.setattr(cache_plan, "cache_identity", older)
        monkeypatch.setattr(manifest, "stored_without_secrets", lambda stored, sources: stored)
        caching.run(load_config("demo-with", words))
        monkeypatch.undo()
        assert "planted" in (folder / "plan.json").read_text()
        shards = {path: path.read_bytes() for path in folder.glob("latents-*")}
        for sign in ("planted", "fresh"):
            caching.run(load_config("demo-with", [*words, f'cache.captions=["{address.replace("planted", sign)}"]']))
        assert {path: path.read_bytes() for path in folder.glob("latents-*")} == shards
    assert found_in(folder, ["planted"]) == []
    assert read_json(folder / "plan.json")["sources"] == ["captions.txt"]


def _with_name(inner: Callable[..., dict[str, Any]], name: str) -> Callable[..., dict[str, Any]]:
    return lambda config: {**inner(config), "sources": [name]}


# The whole road, and a search through everything that it wrote.

SECRETS = {
    "password": "planted-password-1",
    "query": "planted-signature-2",
    "key": "planted-api-key-3",
    "token": "hf_planted_token_4",
    "user": "planted-user-5",
}


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the bytes of a file, and those of everything that is packed or compressed in it."""
    yield from _unpacked(str(path), path.read_bytes())


def _unpacked(name: str, data: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    yield name, data
    if depth == 3:
        return
    for unpack in (gzip.decompress, bz2.decompress, lzma.decompress, zlib.decompress):
        with suppress(OSError, EOFError, lzma.LZMAError, zlib.error, ValueError):
            yield from _unpacked(f"{name} ({unpack.__module__})", unpack(data), depth + 1)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from _unpacked(f"{name}/{member}", archive.read(member), depth + 1)
    with suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for entry in tar:
            if (file := tar.extractfile(entry)) is not None:
                yield from _unpacked(f"{name}/{entry.name}", file.read(), depth + 1)


def found_in(folder: Path, secrets: list[str]) -> list[str]:
    """Returns the files below a folder whose name or content holds a secret."""
    found = []
    for path in sorted(folder.rglob("*")):
        found += [f"{path} (name)" for secret in secrets if secret in str(path.relative_to(folder))]
        if path.is_file():
            for name, data in contents(path):
                found += [f"{name}: {secret}" for secret in secrets if secret.encode() in data]
    return found


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x planted-password-1 x"))
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("facts.npy", "hf_planted_token_4 " * 100)
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(tmp_path / "a.gz", "inner.gz")
    (tmp_path / "planted-user-5").mkdir()
    found = found_in(tmp_path, list(SECRETS.values()))
    assert len(found) == 4 and all(any(str(tmp_path / name) in line for line in found) for name in ("a.gz", "b.npz"))


@contextmanager
def files_behind_a_password(folder: Path) -> Iterator[tuple[str, list[Request]]]:
    """Serves a folder to those who know the user, the password and, outside /cache, the signature."""

    def answer(request: Request) -> bytes:
        path, _, query = request.path.partition("?")
        file = folder / path.lstrip("/")
        known = request.headers.get("authorization", "") == _basic()
        if not known or (not path.startswith("/cache") and SECRETS["query"] not in query):
            # Some servers repeat in their error what they were sent.
            told = f"sign in: {request.headers.get('authorization')} {request.path} {SECRETS['password']}"
            return reply(told.encode(), 401, WWW_Authenticate="Basic")
        if not file.is_file():
            return reply(b"", 404)
        return reply(file.read_bytes(), ETag=f'"{file.stat().st_mtime_ns}"')

    with scripted(answer) as found:
        yield found


def _basic() -> str:
    import base64

    return "Basic " + base64.b64encode(f"{SECRETS['user']}:{SECRETS['password']}".encode()).decode()


@pytest.mark.heavy
@pytest.mark.long
def test_nothing_on_the_whole_road_holds_a_secret(world: Path, tmp_path: Path) -> None:
    """Pool, cache from a server, training, evaluation, report, export, questions to a model: also where they fail."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "captions.csv").write_text("caption\n" + "".join(f"a red {n}\n" for n in range(50)))
    (served / "damaged.jsonl").write_text('{"caption": "one"}\n{"caption": \n')
    (served / "cache").symlink_to(world / "runs/demo/cache")
    home = tmp_path / "home"
    home.mkdir()
    said: list[str] = []
    environment = {"HF_TOKEN": SECRETS["token"], "OPENAI_API_KEY": SECRETS["key"], "HOME": str(home)}
    environment |= {"AWS_SECRET_ACCESS_KEY": SECRETS["key"], "HF_ENDPOINT": "http://127.0.0.1:9"}

    def run(*words: str, code: int = 0) -> str:
        if words[0] == "run":
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                done = randcond(tmp_path / "work", *words, code=code)
        else:
            command = warm.Command("randcond.launch.cli", list(words), tmp_path / "work", environment)
            done = warm.run([command])[0]
            assert done.returncode == code, done.stderr
        said.append(f"{words[0]}\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    (tmp_path / "work").mkdir()
    with files_behind_a_password(served) as (url, requests):
        login = url.replace("://", f"://{SECRETS['user']}:{SECRETS['password']}@")
        signed = f"?X-Amz-Signature={SECRETS['query']}"
        captions, damaged = f"{login}/captions.csv{signed}", f"{login}/damaged.jsonl{signed}"
        words = [
            *TINY,
            f'pool.sources=["{captions}", "{damaged}"]',
            "on_error=skip",
            f"paths.cache={login}/cache",
            f"cache.local={tmp_path}/work/copies",
        ]
        run("run", "all", "demo-with", *words)
        run("run", "all", "demo-with", *words, "--dry-run")
        run("pool", "build", "own", captions)
        run("pool", "info", "own")
        run("pool", "take", "own", "taken", "--n", "3")
        run("export", "demo-with", *words, "--out", "exported")
        run("export", "demo-with", *words, "--out", "pushed", "--push", "me/student", code=2)
        run("report", "demo-with", *words)
        run("run", "train", "demo-with", *words, "train.steps=14")
        run("fetch", "coco-prompts", "--from", captions)
        run("concepts", "split", "split", captions)
        # Where things fail: a wrong password, a missing file, a damaged file, no server.
        wrong = captions.replace(f":{SECRETS['password']}@", f":wrong-{SECRETS['password']}@")
        assert "refuses access (401)" in run("pool", "build", "other", wrong, code=2)
        assert "no such file" in run("pool", "build", "other", captions.replace("captions", "none"), code=2)
        assert "damaged.jsonl?..." in run("pool", "build", "other", damaged, code=2)
        failed = [*words, f'pool.sources=["{wrong}"]', "paths.pool=other"]
        assert "refuses access (401)" in run("run", "pool", "demo-with", *failed, code=2)
        bad = [*words, f"paths.cache={login.replace(SECRETS['user'], 'planted-user-5x')}/cache"]
        assert "refuses access (401)" in run("run", "train", "demo-with", *bad, "paths.run=other-run", code=2)
        run("run", "train", "demo-with", *words, f"train.unknown={captions}", code=2)
    assert requests
    with scripted_model(lambda question: "yes, it can") as asked:
        address = asked.url.replace("://", f"://{SECRETS['user']}:{SECRETS['password']}@")
        (tmp_path / "work/llm").mkdir()
        (tmp_path / "work/llm/nouns.txt").write_text("dog\ncat\n")
        run("datafree", "visual", "llm", "model=m", f"url={address}")
    with scripted(lambda request: reply(json.dumps(dict(request.headers)).encode(), 401)) as (url, _):
        address = url.replace("://", f"://{SECRETS['user']}:{SECRETS['password']}@") + "/v1"
        (tmp_path / "work/llm/visual.jsonl").unlink()
        run("datafree", "visual", "llm", "model=m", f"url={address}", code=2)
    assert found_in(tmp_path / "work", list(SECRETS.values())) == []
    assert found_in(home, list(SECRETS.values())) == []
    leaks = [text for text in said if any(secret in text for secret in SECRETS.values())]
    assert leaks == []
