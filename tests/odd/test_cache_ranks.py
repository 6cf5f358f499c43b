"""Several processes on one damaged cache: they share the repair, and a training can open the cache meanwhile."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from randcond.data.cache.cache_command import verify
from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.shards import index_path
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json
from tests.support import warm
from tests.support.demo import on_ranks
from tests.support.odd_caches import both, config_of, contents, flip, from_other, shard, words_of
from tests.support.patience import HANG

pytestmark = pytest.mark.heavy
Commands = list[warm.Command]
REPAIRS = (
    "latents-00000.tar is made again: it does not match its checksum",
    "latents-00001.tar is written again from the shard: its index is damaged",
    "latents-00002.tar is made again: it belongs to a cache with other settings; it is kept as foreign-latents-00002.t",
)


def stage(folder: Path, *more: str) -> Commands:
    return [warm.Command("randcond.data", ["cache", "demo-with", *words_of(folder), *more], folder)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound cache of 8 latents in 4 shards, and another one of other settings in other/."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "other").mkdir()
    for commands in (stage(folder), stage(folder / "other", "cache.guidance=4.0")):
        (done,) = warm.run(commands)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def damaged(drawn: Path, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A cache with a flipped byte, an index that is damaged, and a shard of another cache. Returns the sound files."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    cache = tmp_path / "cache"
    sound = contents(cache)
    flip(shard(cache, 0), 1000)
    index_path(shard(cache, 1)).write_text("[]")
    from_other(cache, 2)
    with pytest.raises(UserError, match="does not match its checksum"):
        verify(str(cache))
    return tmp_path, sound


def two_ranks(folder: Path) -> Commands:
    return on_ranks(2, "randcond.data", ["cache", "demo-with", *words_of(folder)], folder)


def two_commands(folder: Path) -> Commands:
    return [*stage(folder), *stage(folder)]


@pytest.mark.parametrize("who", [two_ranks, two_commands], ids=["two ranks", "two commands"])
def test_two_processes_make_each_damaged_shard_once(
    who: Callable[[Path], Commands], damaged: tuple[Path, dict[str, bytes]]
) -> None:
    folder, sound = damaged
    cache = folder / "cache"
    untouched = shard(cache, 3).stat()
    done = warm.run(who(folder))
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    texts = [path.read_text() for path in sorted((folder / "runs").rglob("cache-rank-*.log"))]
    assert len(texts) == (2 if who is two_ranks else 1)  # two commands write into one file
    repaired = [line for text in texts for line in text.splitlines() if f"{cache}/latents-" in line]
    assert len(repaired) == len(REPAIRS)
    for said in REPAIRS:
        assert len([line for line in repaired if said in line]) == 1
    assert contents(cache) == sound
    assert (shard(cache, 3).stat().st_ino, shard(cache, 3).stat().st_mtime_ns) == (
        untouched.st_ino,
        untouched.st_mtime_ns,
    )
    assert (cache / "foreign-latents-00002.tar").read_bytes() == shard(folder / "other/cache", 2).read_bytes()
    verify(str(cache))


def test_a_training_finds_every_shard_while_the_cache_is_repaired(damaged: tuple[Path, dict[str, bytes]]) -> None:
    folder, sound = damaged
    cache = folder / "cache"
    teacher = read_json(cache / "manifest.json")["teacher"]
    watched = [path for number in range(4) for path in both(cache, number)]
    (command,) = stage(folder)
    process = warm.Process(command)
    deadline = time.monotonic() + HANG
    rounds = 0
    while process.poll() is None:
        assert time.monotonic() < deadline
        assert all(path.is_file() for path in watched)
        rounds += 1
        if rounds % 20 == 0:
            opened = LatentCache.open(config_of(folder, "on_error=skip"), teacher)
            assert not [line for line in opened.left_out if "missing" in line]
            assert opened.pair(len(opened) - 1)[1] == 7
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert rounds > 20 and all(out.count(said) == 1 for said in REPAIRS)
    assert {name: data for name, data in contents(cache).items() if not name.endswith(".damaged")} == sound
    assert len(LatentCache.open(config_of(folder), teacher)) == 8
