"""Caches whose faults `cache verify` must name, and on which no training begins."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from randcond.data.cache import caching
from randcond.data.cache.cache_command import open_cache, subset, verify
from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.shards import Shard, index_path, write_shard
from randcond.launch.errors import UserError
from randcond.model_zoo.teacher import Teacher
from tests.support.odd_caches import (
    config_of,
    contents,
    copy,
    edit,
    flip,
    folder,
    made,
    rewrite_manifest,
    shard,
    teacher,
)

__all__ = ["folder", "made", "teacher"]  # fixtures

# id -> what happens to a sound cache, what `cache verify` says
FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a manifest of no shards": (
        lambda c: edit(c / "manifest.json", lambda m: {**m, "shards": []}),
        ["lists 0 shards, expected 4", "lists 0 latents and 0 captions without one, expected 8"],
    ),
    "a manifest that lacks a shard": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"].__delitem__(-1)),
        ["lists 3 shards, expected 4", "lists 6 latents"],
    ),
    "a shard twice": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"].append(m["shards"][3])),
        ["lists 5 shards, expected 4", "lists 10 latents"],
    ),
    "shards in another order": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"].reverse()),
        ["latents-00003.tar: it holds caption 6, expected captions 0 to 1", "00000.tar: it holds caption 0, expected"],
    ),
    "a copy with a manifest around it": (
        lambda c: (copy(c, 1, 2), rewrite_manifest(c)),
        ["latents-00002.tar: it holds caption 2, expected captions 4 to 5"],
    ),
    "fewer latents with a manifest around them": (
        lambda c: (edit(index_path(shard(c, 1)), lambda index: index["members"].__delitem__(-1)), rewrite_manifest(c)),
        ["lists 7 latents and 0 captions without one, expected 8", "it lacks 1 of captions 2 to 3, the first is 3"],
    ),
    "a latent twice with a manifest around it": (
        lambda c: (
            edit(index_path(shard(c, 1)), lambda index: index["members"].append(index["members"][0])),
            rewrite_manifest(c),
        ),
        ["it holds caption 2 twice"],
    ),
    "captions missing": (
        lambda c: (c / "captions.arrow").unlink(),
        ["captions.arrow: is missing; `randcond run cache EXPERIMENT` (the experiment that made it) writes it again"],
    ),
    "captions damaged, and a shard too": (
        lambda c: (flip(c / "captions.arrow", 300), shard(c, 0).unlink()),
        ["captions.arrow: does not match its checksum", "latents-00000.tar: the shard or its index is missing"],
    ),
    "more captions than latents": (
        lambda c: edit(c / "manifest.json", lambda m: {**m, "captions": 9}),
        ["holds 8 captions, expected 9", "lists 4 shards, expected 5"],
    ),
    "a caption of another text": (
        lambda c: (
            write_shard(shard(c, 0), [{**sample, "caption": "another"} for sample in samples(c, 0)]),
            rewrite_manifest(c),
        ),
        ["key 000000000: its caption differs from caption 0 in captions.arrow"],
    ),
    "a manifest without a shard size": (
        lambda c: edit(c / "manifest.json", lambda m: {key: m[key] for key in m if key != "shard_size"}),
        ["not the manifest of a cache: shard_size is None"],
    ),
    "a shard size of zero": (
        lambda c: edit(c / "manifest.json", lambda m: {**m, "shard_size": 0}),
        ["not the manifest of a cache: shard_size is 0"],
    ),
    "a number beyond all files": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"][0].update(samples=10**30)),
        ["not the manifest of a cache: shards.0.samples"],
    ),
    "a surrogate in a name": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"][0].update(shard="\ud800.tar")),
        [".tar: the shard or its index is missing"],
    ),
    "a manifest that is a list": (lambda c: (c / "manifest.json").write_text("[]"), ["expected an object, found list"]),
}


def samples(cache: Path, number: int) -> list[dict[str, Any]]:
    opened = Shard(shard(cache, number))
    return [
        {"caption_id": caption_id, "caption": "", "latent": np.array(opened.latent(row)), "meta": {}}
        for row, caption_id in enumerate(opened.caption_ids.tolist())
    ]


@pytest.mark.parametrize("case", FAULTS)
def test_verify_names_every_fault(case: str, folder: Path) -> None:
    damage, lines = FAULTS[case]
    damage(folder / "cache")
    with pytest.raises(UserError) as error:
        verify(str(folder / "cache"))
    for line in lines:
        assert line in str(error.value)
    assert "emove" not in str(error.value)


TRAINED_ON = [
    "a manifest of no shards",
    "a manifest that lacks a shard",
    "shards in another order",
    "a copy with a manifest around it",
    "fewer latents with a manifest around them",
    "captions missing",
    "a number beyond all files",
    "a manifest that is a list",
]


@pytest.mark.parametrize("case", TRAINED_ON)
def test_a_training_does_not_begin_on_such_a_cache(case: str, folder: Path, teacher: Teacher) -> None:
    FAULTS[case][0](folder / "cache")
    with pytest.raises(UserError, match=r"randcond run cache EXPERIMENT"):
        LatentCache.open(config_of(folder), teacher.fingerprint)
    with pytest.raises(UserError, match="randcond run cache EXPERIMENT"):
        open_cache(folder / "cache")


def test_with_skip_a_copied_shard_is_left_out_and_named(folder: Path, teacher: Teacher) -> None:
    copy(folder / "cache", 1, 2)
    rewrite_manifest(folder / "cache")
    opened = LatentCache.open(config_of(folder, "on_error=skip"), teacher.fingerprint)
    assert [opened.pair(index)[1] for index in range(len(opened))] == [0, 1, 2, 3, 6, 7]
    assert "latents-00002.tar: it holds caption 2, expected captions 4 to 5" in opened.left_out[0]


def test_a_part_of_a_cache_is_repaired_as_far_as_it_has_files_of_its_own(folder: Path, teacher: Teacher) -> None:
    part = folder / "part"
    words = ["cache.size=5", f"paths.cache={part}"]
    subset(str(folder / "cache"), str(part), n=5)
    sound = contents(part)
    verify(str(part))
    for damage in (
        lambda: (part / "captions.arrow").unlink(),
        lambda: flip(part / "captions.arrow", 300),
        lambda: (part / "manifest.json").write_text("[]"),
    ):
        damage()
        subset(str(folder / "cache"), str(part), n=5)
        assert contents(part) == sound
    (part / "captions.arrow").unlink()
    caching.run(config_of(folder, *words))
    assert contents(part) == sound
    shard(folder / "cache", 1).unlink()
    with pytest.raises(
        UserError, match=r"00001\.tar.* is missing.*a part of the cache at .*/cache: run the experiment"
    ):
        caching.run(config_of(folder, *words))
    (folder / "unfinished").mkdir()
    shutil.copy(folder / "cache/plan.json", folder / "unfinished")
    caching.run(config_of(folder))
    with pytest.raises(UserError, match="holds another cache; choose another OUT"):
        subset(str(folder / "cache"), str(folder / "unfinished"), n=5)
