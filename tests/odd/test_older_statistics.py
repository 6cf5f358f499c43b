"""Statistics of real images that commit e5be128 made, or began: what is finished is used, nothing is mixed."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from randcond.eval.scores.real_images import statistics_of_folder
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from tests.odd.image_formats import SMOOTH
from tests.support.networks import dino_folder
from tests.support.odd_images import saved

FACTS = ("size", "jpeg", "images_sha256", "extractor", "images", "features_sha256")  # all that e5be128 stored


def stats(folder: Path, size: int = 32) -> Path:
    ev = Eval(dino=str(folder / "dino"), metrics=["fd-dinov2"])
    (path,) = statistics_of_folder(folder / "in", folder / "out", ev, None, size, jpeg=False)
    return path


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Makes statistics of three images in the form of e5be128: plan, features and facts say nothing about reading."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / f"in/{number}.png").write_bytes(saved(SMOOTH // (number + 1), "PNG"))
    dino_folder(tmp_path / "dino")
    path = stats(tmp_path)
    plan = json.loads((tmp_path / "out/features/plan.json").read_text())
    assert plan.pop("reading") == 2
    (tmp_path / "out/features/plan.json").write_text(json.dumps(plan, indent=2) + "\n")
    chunk = tmp_path / "out/features/chunk-00000.safetensors"
    features = load_file(chunk)
    del features["rows"]
    save_file(features, chunk)
    with np.load(path) as arrays:
        content = dict(arrays)
    facts = json.loads(str(content["facts"]))
    np.savez(path, **{**content, "facts": np.array(json.dumps({key: facts[key] for key in FACTS}))})
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("lost", ["", "all-dino.npz", "all-dino.safetensors"])
def test_finished_statistics_are_used_and_stay_as_they_are(older: Path, lost: str) -> None:
    """Evaluations hold a hash of the statistics, so every byte counts, also where a file is written again."""
    before = contents(older / "out")
    if lost:
        (older / "out" / lost).unlink()
    stats(older)
    assert contents(older / "out") == before


def test_a_setting_that_differs_is_still_named(older: Path) -> None:
    with pytest.raises(
        UserError, match=r"features does not match this experiment: size is 32 there, 48 here\. Restore"
    ):
        stats(older, size=48)


def test_unfinished_statistics_are_not_mixed_with_new_ones(older: Path) -> None:
    (older / "out/features/chunk-00000.safetensors").unlink()
    before = contents(older / "out")
    with pytest.raises(UserError, match=r"begun by an older version.*; finish it with that version, or give another"):
        stats(older)
    assert contents(older / "out") == before
