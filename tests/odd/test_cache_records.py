"""Caches whose records (plan, manifest) are lost, old or of another cache: no latent is drawn for want of a record."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from randcond.data.cache import caching
from randcond.data.cache.cache_command import preview, subset, verify
from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.shards import index_path, read_index
from randcond.launch.errors import UserError
from randcond.model_zoo.teacher import Teacher
from tests.support.odd_caches import (
    SHARDS,
    both,
    config_of,
    contents,
    edit,
    flip,
    folder,
    from_other,
    made,
    rewrite_manifest,
    shard,
    source,
    teacher,
)

__all__ = ["folder", "made", "teacher"]  # fixtures

RECORDS = ("plan.json", "manifest.json")


def shards(cache: Path) -> dict[str, bytes]:
    """Returns the bytes of every shard and index, those of other caches too."""
    return {path.name: path.read_bytes() for path in cache.iterdir() if "latents-" in path.name}


def as_older(cache: Path, **words: object) -> None:
    """Gives the plan of a cache other words, of which its shards hold a hash, as older versions did."""
    plan = {**json.loads((cache / "plan.json").read_text()), **words}
    (cache / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")
    made_of = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
    for number in range(SHARDS):
        edit(index_path(shard(cache, number)), lambda index: {**index, "made_of": made_of})
    edit(cache / "manifest.json", lambda manifest: {**plan, "shards": manifest["shards"]})
    rewrite_manifest(cache)


READERS: dict[str, Callable[[Path, Teacher], object]] = {
    "a training": lambda f, teacher: LatentCache.open(config_of(f), teacher.fingerprint),
    "verify": lambda f, _: verify(str(f / "cache")),
    "a preview": lambda f, _: preview(str(f / "cache"), teacher="package:data/digits/models/teacher", n=1),
    "a subset": lambda f, _: subset(str(f / "cache"), str(f / "part"), n=5),
    "the cache stage": lambda f, _: caching.run(config_of(f)),
}


@pytest.mark.parametrize("lost", ["", *RECORDS])
@pytest.mark.parametrize("reader", READERS)
def test_an_older_plan_keeps_its_hash_when_secrets_are_taken_out(
    reader: str, lost: str, folder: Path, teacher: Teacher
) -> None:
    """Whoever reads the manifest first, the cache stage then finds every shard sound, with and without plan.json."""
    cache = folder / "cache"
    as_older(cache, sources=["captions.txt?sig=planted"])
    before = shards(cache)
    if lost != "manifest.json":  # all of them but the cache stage need it
        READERS[reader](folder, teacher)
    if lost:
        (cache / lost).unlink()
    caching.run(config_of(folder))
    assert shards(cache) == before
    verify(str(cache))
    for name in RECORDS:
        assert "planted" not in (cache / name).read_text()
    if reader == "a subset" and not lost:
        subset(str(cache), str(folder / "part"), n=5)  # the same again: nothing to do


def all_from_other(cache: Path) -> None:
    for number in range(SHARDS):
        from_other(cache, number)


# id -> what happens to a sound cache whose shards are then all those of another one, what the error says
FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "only shards copied": (all_from_other, r"no plan\.json or manifest\.json here is theirs"),
    "a manifest around them": (
        lambda c: (all_from_other(c), rewrite_manifest(c)),
        r"no plan\.json or manifest\.json here is theirs",
    ),
    "the manifest lost": (
        lambda c: (all_from_other(c), (c / "manifest.json").unlink()),
        r"no plan\.json or manifest\.json here is theirs",
    ),
    "all records lost": (
        lambda c: (all_from_other(c), [(c / name).unlink() for name in RECORDS]),
        r"has no plan\.json that names them",
    ),
    "one shard is left, and it is another's": (
        lambda c: (from_other(c, 2), [path.unlink() for number in (0, 1, 3) for path in both(c, number)]),
        r"no plan\.json or manifest\.json here is theirs",
    ),
    "all records lost, one shard is another's": (
        lambda c: (from_other(c, 2), [(c / name).unlink() for name in RECORDS]),
        r"latents-00002\.tar: .* has no plan\.json that names them",
    ),
    "the manifest is theirs": (
        lambda c: (all_from_other(c), shutil.copy(c.parent / "other/cache/manifest.json", c)),
        r"guidance is 4\.0 there, 3\.0 here",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_cache_of_shards_of_another_one_is_refused_and_stays(case: str, folder: Path) -> None:
    damage, message = FOREIGN[case]
    cache = folder / "cache"
    damage(cache)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    with pytest.raises(UserError, match=f"{message}.*another paths.cache") as error:
        caching.run(config_of(folder))
    assert "restore" in str(error.value) and "remove" not in str(error.value)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_a_plan_of_another_cache_gives_way_to_the_manifest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = folder / "cache"
    sound = contents(cache)
    edit(cache / "plan.json", lambda plan: {**plan, "damaged": ["words of another day"]})
    caching.run(config_of(folder))
    assert "plan.json is not the plan of the shards here; written again from manifest.json" in capsys.readouterr().out
    assert contents(cache) == sound


# Words about damaged sources stand in the plan. They are no part of what a cache is.


@pytest.mark.parametrize("lost", [[], ["plan.json"], ["manifest.json"], RECORDS])
def test_other_words_about_damaged_sources_change_nothing(lost: list[str], folder: Path, teacher: Teacher) -> None:
    cache = folder / "skipped/cache"
    cache.parent.mkdir()
    rows = source(folder).read_bytes() + b"a red \xff on white\n"
    (cache.parent / "captions.txt").write_bytes(rows)
    words = [f"paths.cache={cache}", "on_error=skip"]
    caching.run(config_of(cache.parent, *words))
    sound = contents(cache)
    assert "not UTF-8" in json.loads(sound["manifest.json"])["damaged"][0]
    elsewhere = folder / "elsewhere"  # the same file in another place: the sentence has another path
    elsewhere.mkdir()
    (elsewhere / "captions.txt").write_bytes(rows)
    for name in lost:
        (cache / name).unlink()
    caching.run(config_of(elsewhere, *words))
    assert shards(cache) == {name: sound[name] for name in sound if "latents-" in name}
    if len(lost) < 2:
        assert contents(cache) == sound
    opened = LatentCache.open(config_of(elsewhere, *words), teacher.fingerprint)
    assert len(opened) == 8 and "not UTF-8" in opened.manifest["damaged"][0]


@pytest.mark.parametrize("lost", ["", *RECORDS])
def test_an_older_cache_with_words_in_its_hash_stays(lost: str, folder: Path) -> None:
    cache = folder / "cache"
    as_older(cache, damaged=["captions.txt, line 9: not UTF-8, said in older words"])
    before = contents(cache)
    if lost:
        (cache / lost).unlink()
    caching.run(config_of(folder))
    assert contents(cache) == before


# What the start of a complete cache costs.


def test_the_start_of_a_complete_cache_reads_no_latent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped byte shows it: the stage sees it only once `cache verify` has noted it."""
    cache = folder / "cache"
    sound = contents(cache)
    flip(shard(cache, 3), 1000)
    damaged = contents(cache)
    caching.run(config_of(folder))
    assert not capsys.readouterr().out and contents(cache) == damaged
    with pytest.raises(UserError, match=r"00003\.tar: does not match its checksum.*`randcond run cache EXPERIMENT`"):
        verify(str(cache))
    caching.run(config_of(folder))
    assert "00003.tar is made again: it does not match its checksum" in capsys.readouterr().out
    assert contents(cache) == sound


def test_a_training_notes_the_shard_that_it_refuses(folder: Path, teacher: Teacher) -> None:
    cache = folder / "cache"
    sound = contents(cache)
    flip(shard(cache, 3), 1000)
    with pytest.raises(UserError, match=r"00003\.tar: does not match its checksum"):
        LatentCache.open(config_of(folder), teacher.fingerprint)
    caching.run(config_of(folder))
    assert contents(cache) == sound


def test_a_note_goes_when_the_shard_was_restored_by_hand(folder: Path) -> None:
    cache = folder / "cache"
    sound = contents(cache)
    flip(shard(cache, 3), 1000)
    with pytest.raises(UserError):
        verify(str(cache))
    assert (cache / "latents-00003.damaged").is_file()
    shard(cache, 3).write_bytes(sound["latents-00003.tar"])
    verify(str(cache))
    assert contents(cache) == sound


def test_a_shard_of_another_cache_is_kept_once(folder: Path) -> None:
    """Also if a command was killed when it had kept it and renamed the new shard, but not the new index."""
    cache = folder / "cache"
    own, theirs = read_index(shard(cache, 2)).sha256, {path.name: path.read_bytes() for path in both(cache, 2)}
    from_other(cache, 2)
    foreign = {path.name: path.read_bytes() for path in both(cache, 2)}
    for name, data in foreign.items():
        (cache / f"foreign-{name}").write_bytes(data)
    shard(cache, 2).write_bytes(theirs["latents-00002.tar"])
    caching.run(config_of(folder))
    assert read_index(shard(cache, 2)).sha256 == own
    assert {name: data for name, data in shards(cache).items() if name.startswith("foreign-")} == {
        f"foreign-{name}": data for name, data in foreign.items()
    }
