"""Artefacts of an older commit are reused: cache, pool, evaluation and run, also after a key is added."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from randcond.data.cache import cache_plan, caching
from randcond.data.captions.pool import build_pool
from randcond.eval import evaluate, stage
from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, sha256
from tests.support.demo import randcond

MADE = Path(__file__).parent / "made_by_08bc9e2"
OVERRIDES = [
    "paths.cache=small/cache",
    "paths.pool=small/pool",
    "paths.run=small/run",
    "paths.reference=small/reference",
    "cache.size=16",
    "cache.batch=8",
    "cache.shard_size=8",
    "cache.steps=2",
    "student.rule=channel-0.25",
    "student.init=random",
    "train.steps=2",
    "train.global_batch=8",
    "train.checkpoint_every=2",
    "train.log_every=1",
    "train.sample_every=0",
    "train.log_samples=true",
    "train.warmup=0",
    "eval.size=4",
    "eval.batch=4",
    "eval.steps=2",
    "engine.processes=1",
    "engine.threads=1",
]


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yields a copy of the artefacts. Sets the library versions and the number of threads that they were made with."""
    shutil.copytree(MADE, tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    versions = read_json(MADE / "reference/plan.json")["versions"]
    for module in (cache_plan, evaluate):
        monkeypatch.setattr(module, "version", versions.__getitem__)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "small"
    torch.set_num_threads(threads)


def config(*overrides: str) -> Config:
    """Returns the experiment that the artefacts were made for."""
    return load_config("demo-with", [*OVERRIDES, *overrides])


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files below a folder, without config.yaml and locks, which a stage may write again."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name not in ("config.yaml", ".lock")}


def index_file(small: Path) -> Path:
    """Returns the path of the second shard's index."""
    return small / "cache/latents-00001.index.json"


def members(shard: Path) -> dict[str, bytes]:
    """Returns a shard's files by name."""
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def without(path: Path, *keys: str) -> None:
    """Removes a nested key from a JSON file, as if the file were older than the key."""
    data = read_json(path)
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(json.dumps(data))


def test_a_cache_is_complete(older: Path) -> None:
    before = contents(older / "cache")
    caching.run(config())
    assert contents(older / "cache") == before


@pytest.mark.parametrize(
    "lost", [["plan.json"], ["manifest.json"], ["plan.json", "manifest.json"], ["latents-00001.index.json"]]
)
def test_a_cache_that_has_lost_records_is_complete(older: Path, lost: list[str]) -> None:
    before = contents(older / "cache")
    for name in lost:
        (older / "cache" / name).unlink()
    caching.run(config())
    assert contents(older / "cache") == before


def test_a_key_added_to_the_cache_changes_nothing(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(older / "cache")
    inner: Callable[[Config], dict[str, Any]] = cache_plan.cache_identity
    monkeypatch.setattr(cache_plan, "cache_identity", lambda config: inner(config) | {"a_new_key": 3})
    monkeypatch.setattr(cache_plan, "absent_settings", lambda *kinds: {"a_new_key": 3})
    kept = members(older / "cache/latents-00001.tar")
    (older / "cache/latents-00001.tar").unlink()
    caching.run(config())  # draws the missing shard into the same cache
    assert contents(older / "cache").keys() == before.keys()
    assert (older / "cache/plan.json").read_bytes() == before[str(older / "cache/plan.json")]
    drawn = members(older / "cache/latents-00001.tar")
    assert drawn.keys() == kept.keys()
    for name, content in kept.items():
        if name.endswith(".npy"):  # another processor draws the same latent to rounding, not bit for bit
            difference = np.load(io.BytesIO(drawn[name])) - np.load(io.BytesIO(content)).astype(np.float32)
            assert np.abs(difference).max() < 0.01, name
        else:
            assert drawn[name] == content, name
    index, old = read_json(index_file(older)), json.loads(before[str(index_file(older))])
    assert index | {"sha256": old["sha256"]} == old
    monkeypatch.setattr(cache_plan, "absent_settings", lambda *kinds: {"a_new_key": 4})
    with pytest.raises(UserError, match=r"does not match this experiment: a_new_key is 4 there, 3 here\. To use it"):
        caching.run(config())


def test_a_pool_is_used_and_so_is_one_with_a_key_less(older: Path) -> None:
    before = contents(older / "pool")
    assert build_pool(config())["captions"] == 3200
    assert contents(older / "pool") == before
    without(older / "pool/manifest.json", "asked", "seed")
    without(older / "pool/manifest.json", "asked", "size")
    assert build_pool(config())["captions"] == 3200
    with pytest.raises(UserError, match=r"pool\.min_length is 1 there, 5 here"):
        build_pool(config("pool.min_length=5"))


def test_an_evaluation_is_kept_and_so_is_one_with_a_key_less(older: Path) -> None:
    before = contents(older / "reference")
    alone = config("eval.of=[teacher]", "eval.cost=false")
    stage.run(alone)
    assert contents(older / "reference") == before
    for name, *above in (("plan.json",), ("scores.json", "protocol")):
        without(older / "reference" / name, *above, "resolution")
        without(older / "reference" / name, *above, "compile")
    before = contents(older / "reference")
    stage.run(alone)
    assert contents(older / "reference") == before
    with pytest.raises(UserError, match="seed is 1 there, 2 here"):
        stage.run(config("eval.of=[teacher]", "eval.seed=2"))


def fill_checkpoint(folder: Path) -> None:
    """Writes random tensors of the sizes in the manifest, because none are stored, and updates the checksums."""
    manifest = read_json(folder / "manifest.json")
    generator = torch.Generator().manual_seed(0)
    for name, entry in manifest["files"].items():
        tensors = {
            f"{kind}/{key}": torch.rand(length, generator=generator) * 0.02
            for kind, runs in entry["runs"].items()
            for key, length in runs.items()
        }
        save_file(tensors, folder / name)
        entry["sha256"] = sha256(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "manifest.sha256").write_text(sha256(folder / "manifest.json"))


def test_a_run_resumes_and_names_what_differs(older: Path, tmp_path: Path) -> None:
    """The stored identity lacks student.start_from, which was added later. The test removes one more key."""
    checkpoint = older / "run/checkpoints/step-00000002"
    without(checkpoint / "manifest.json", "identity", "train", "eps")
    fill_checkpoint(checkpoint)
    (older / "run/train.json").unlink()  # its exported students are not stored either
    words = ["run", "train", "demo-with", *OVERRIDES, "train.steps=4"]
    refused = randcond(tmp_path, *words, "train.lr=2e-3", "student.seed=1", code=2).stderr
    assert "student.seed is 0 there, 1 here; train.lr is 0.001 there, 0.002 here. To resume it, restore" in refused
    assert "student.init=small/run/student_ema" in refused and "Traceback" not in refused
    said = randcond(tmp_path, *words).stdout
    assert "from step 2" in said
    assert read_json(older / "run/train.json")["steps"] == 4
