"""`cache.resolution` of drawn latents: which identity it has, and which latents it makes."""

from pathlib import Path
from typing import Any

import pytest

from randcond.data.cache import caching
from randcond.data.cache.cache_faults import read_manifest
from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.latent_source import cache_identity
from randcond.launch.config.experiments import load_config
from randcond.launch.config.identity import absent_settings, differences
from randcond.launch.config.sections import Cache
from randcond.launch.errors import UserError

WORDS = ["cache.size=4", "cache.batch=4", "cache.shard_size=4", "cache.steps=1"]


def identity(*words: str) -> dict[str, Any]:
    return cache_identity(load_config("demo-with", [*WORDS, *words]))


def test_the_resolution_is_compared_and_may_be_missing_in_an_older_cache() -> None:
    absent = absent_settings(Cache, "cache", "drawn cache")
    older = {key: value for key, value in identity().items() if key != "resolution"}
    assert not differences(older, identity(), absent)
    for stored, expected, said in (
        (older, identity("cache.resolution=64"), "resolution is None there, 64 here"),
        (identity("cache.resolution=64"), identity(), "resolution is 64 there, None here"),
    ):
        assert [str(found) for found in differences(stored, expected, absent)] == [said]
    images = identity("cache.captions=[]", "cache.images=photos", "cache.exclude=[]")
    assert list(images)[:2] == ["source", "resolution"] and images["resolution"] is None  # as older ones have it


def test_latents_are_drawn_at_the_resolution(tmp_path: Path) -> None:
    cache = f"paths.cache={tmp_path / 'cache'}"
    caching.run(load_config("demo-with", [*WORDS, cache, "cache.resolution=64"]))
    manifest = read_manifest(tmp_path / "cache")
    assert manifest["latent_shape"] == [4, 16, 16] and manifest["resolution"] == 64
    with pytest.raises(UserError, match=r"latent_shape is \[4, 16, 16\] there, \[4, 8, 8\] here"):
        caching.run(load_config("demo-with", [*WORDS, cache]))
    with pytest.raises(UserError, match="resolution is 64 there, None here"):
        LatentCache.open(load_config("demo-with", [*WORDS, cache]), manifest["teacher"])
    caching.run(load_config("demo-with", [*WORDS, f"{cache}-plain"]))  # as older versions made it
    assert "resolution" not in read_manifest(tmp_path / "cache-plain")
    with pytest.raises(UserError, match=r"cache\.resolution: is 30, expected a multiple of 4"):
        caching.run(load_config("demo-with", [*WORDS, f"{cache}-other", "cache.resolution=30"]))
