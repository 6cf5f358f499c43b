"""The folder of the cluster tests: a pool, a cache, and a student that two ranks of one host trained."""

from pathlib import Path

import pytest

from tests.cluster.hosts import NAMES
from tests.cluster.world import WORDS
from tests.support.demo import randcond


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cluster")
    for stage in ("pool", "cache", "train"):
        randcond(place, "run", stage, "demo-with", *WORDS, "--gpus", "2")
    (place / "hosts").write_text("".join(f"{name} slots=1\n" for name in NAMES))
    return place
