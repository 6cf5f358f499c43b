"""Tests of caches and captions on a server: bounded local space, resumed transfers, checksums, retries."""

import errno
import re
from pathlib import Path

import numpy as np
import pytest

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.shard_store import window_of
from randcond.data.captions.caption_lists import read_source, read_unique
from randcond.data.captions.sources import expand, identify
from randcond.data.inputs import fetch as fetching
from randcond.data.inputs.fetch import FetchError, fetch
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256
from randcond.model_zoo.teacher import Teacher
from tests.cluster.packages import need
from tests.support.demo import TINY, randcond
from tests.support.runs import same_bits, samples
from tests.support.web import nginx, s3, served

TEACHER = "package:data/digits/models/teacher"


def test_a_cut_transfer_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "BLOCK", 100_000)
    monkeypatch.setattr(fetching, "PATIENCE", 0.01)
    monkeypatch.setattr(fetching, "STALL", 1.0)
    (tmp_path / "in").mkdir()
    data = np.random.default_rng(0).bytes(1_000_000)
    (tmp_path / "in/file").write_bytes(data)
    came: list[int] = []
    with served(tmp_path / "in", cuts=[250_000, 10, 330_000, 0, 120_000]) as url:
        target = fetch(f"{url}/file", tmp_path / "out/file", sha256(tmp_path / "in/file"), came.append)
        assert target.read_bytes() == data and not list((tmp_path / "out").glob("*.part"))
        assert sum(came) == len(data)  # no byte came twice
        with pytest.raises(UserError, match="no such file"):
            fetch(f"{url}/none", tmp_path / "out/none")
        with pytest.raises(UserError, match=r"checksum is .* expected 0000"):
            fetch(f"{url}/file", tmp_path / "out/other", "0" * 64)
    monkeypatch.setattr(fetching, "TRIES", 2)
    with pytest.raises(FetchError, match="failed after 2 tries"):
        fetch(f"{url}/file", tmp_path / "out/again")


def test_a_full_disk_is_no_servers_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "_append", full)
    (tmp_path / "file").write_bytes(b"x")
    with served(tmp_path) as url, pytest.raises(OSError, match=r"/file: can't write .*out.part: No space left"):
        fetch(f"{url}/file", tmp_path / "out")


def test_captions_are_read_from_a_server(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"caption": "a red two"}\n{"caption": "a  blue one"}\n')
    with served(tmp_path) as url:
        assert list(read_source(f"{url}/a.jsonl")) == ["a red two", "a blue one"]


def test_a_server_that_is_busy_is_asked_again_and_a_query_is_no_glob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.01)
    (tmp_path / "a.csv").write_text("caption\none\ntwo\n")
    with served(tmp_path, busy=3) as url:
        assert read_unique([f"{url}/a.csv?download=true"])[0] == ["one", "two"]
        assert identify(f"{url}/a.csv?download=true")["name"] == "a.csv"
    monkeypatch.setattr(fetching, "TRIES", 2)
    with served(tmp_path, busy=99) as url, pytest.raises(fetching.FetchError, match=r"a\.csv: no answer after 2 tries"):
        expand(f"{url}/a.csv")


def test_a_window_leaves_room_for_the_next_one() -> None:
    assert window_of([10, 10, 10], 30) is None
    assert window_of([10] * 8, 40) == 2
    with pytest.raises(UserError, match=r"cache\.local_gb: .* at least two shards"):
        window_of([10, 10, 10], 15)


def size_of(path: Path) -> int:
    """Returns the bytes of a local copy, or 0 if it was just deleted."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_remote_cache_in_little_room_gives_every_latent_once_an_epoch(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.01)
    here = world / "runs/demo/cache"
    size = max(path.stat().st_size for path in here.glob("*.tar"))
    fingerprint = Teacher.load(resolve_path(TEACHER)).fingerprint
    local = LatentCache.open(load_config("demo-with", [*TINY, f"paths.cache={here}"]), fingerprint)
    with served(here, cuts=[5000, 30_000, 7, 60_000]) as url:
        words = [f"paths.cache={url}", f"cache.local={tmp_path}", f"cache.local_gb={2.5 * size / 1e9}"]
        remote = LatentCache.open(load_config("demo-with", [*TINY, *words]), fingerprint)
        assert (local.window, remote.window) == (None, 1)
        order = remote.order(np.random.default_rng(3))
        assert sorted(order.tolist()) == list(range(96))
        assert [int(index) // 32 for index in order[::32]] == [
            int(index) // 32 for index in order[31::32]
        ]  # whole shards
        for place, index in enumerate(order.tolist()):
            remote.prefetch(int(order[min(place + remote.prefetch_distance, 95)]))
            (ours, own), (theirs, own_too) = remote.pair(index), local.pair(index)
            assert np.array_equal(ours, theirs) and own == own_too
            assert sum(map(size_of, tmp_path.rglob("shards-*/*.tar"))) <= 2.5 * size


@pytest.mark.parametrize("server", ["aiohttp", pytest.param("nginx", marks=pytest.mark.hosts)])
def test_training_from_a_server_trains_the_same_student(world: Path, tmp_path: Path, server: str) -> None:
    """With room for the whole cache, order and weights are those of a local folder, although connections are cut."""
    here, cuts = world / "runs/demo/cache", [900, 20_000, 15_000]
    if server == "nginx":
        need({"nginx": "nginx-light"})
    with served(here, cuts) if server == "aiohttp" else nginx(here, tmp_path / "nginx", cuts) as url:
        words = [*TINY, f"paths.cache={url}", f"cache.local={tmp_path}", f"paths.run=runs/remote-{server}"]
        randcond(world, "run", "train", "demo-with", *words)
        assert same_bits(world / f"runs/remote-{server}", world / "runs/demo/with")
        assert "a cache at a URL is read-only" in randcond(world, "run", "cache", "demo-with", *words, code=2).stderr
    if server == "nginx":
        asked = re.findall(r"GET /(latents-\d+\.tar) ", (tmp_path / "nginx/access.log").read_text())
        assert len(set(asked)) == 3 < len(asked)  # a cut shard was requested again


def test_training_from_s3_in_little_room_sees_every_latent_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for two of three shards, and connections are cut. Each epoch has every latent exactly once."""
    here = world / "runs/demo/cache"
    room = 2.5 * max(path.stat().st_size for path in here.glob("*.tar")) / 1e9
    with s3(here, tmp_path / "s3", cuts=[900, 20_000, 15_000]) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        words = ["paths.cache=s3://bucket/cache", f"cache.local={tmp_path}", f"cache.local_gb={room}"]
        words += ["paths.run=runs/s3", "train.log_samples=true"]
        randcond(world, "run", "train", "demo-with", *TINY, *words)
    seen = samples(world / "runs/s3")
    for first in (1, 7):  # an epoch is six steps of 16 samples
        keys = sorted(sample[0] for step in range(first, first + 6) for sample in seen[step])
        assert keys == list(range(96))
