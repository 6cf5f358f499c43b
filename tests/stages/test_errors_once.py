"""Errors of a stage that runs alone: found before any rank starts, or shown once where only ranks can find them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from randcond.launch.runtime.files import write_json
from tests.support.demo import TINY
from tests.support.hub import small_hub
from tests.support.patience import HANG

pytestmark = pytest.mark.heavy


def run(world: Path, *words: str, code: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "randcond.launch.cli", "run", *words]
    done = subprocess.run(command, cwd=world, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    ("stage", "words", "said"),
    [
        (
            "train",
            ["paths.cache=none"],
            "no complete cache at none: create or finish it with `randcond run cache demo-w",
        ),
        (
            "train",
            ["paths.run=runs/new", "cache.guidance=5.0"],
            "runs/demo/cache does not match this experiment: cache.guidance is 3.0 there, 5.0 here",
        ),
        pytest.param("train", ["train.global_batch=15"], "15 does not divide over 2 ranks", marks=pytest.mark.slow),
        pytest.param(
            "eval",
            ["paths.run=none"],
            "no trained student at none/student_ema: train it with `randcond run train demo-w",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_stage_alone_is_checked_before_its_ranks_start(world: Path, stage: str, words: list[str], said: str) -> None:
    done = run(world, stage, "demo-with", *TINY, "--gpus", "2", *words)
    assert said in done.stderr and done.stderr.count("error") == 1 and len(done.stderr.splitlines()) == 1
    assert "[1/2] check" in done.stdout and "[2/2]" not in done.stdout


@pytest.mark.parametrize(
    "launcher", ["", *(pytest.param(x, marks=pytest.mark.slow) for x in ("deepspeed", "torchrun"))]
)
def test_what_only_the_ranks_can_find_is_shown_once(world: Path, launcher: str) -> None:
    """Only they compare the teacher itself with that of the cache."""
    cache = world / f"runs/cache-of-another-teacher-{launcher}"
    shutil.copytree(world / "runs/demo/cache", cache)
    manifest = json.loads((cache / "manifest.json").read_text())
    write_json(cache / "manifest.json", {**manifest, "teacher": "another"})
    words = ["train", "demo-with", *TINY, "paths.run=runs/new", f"paths.cache={cache}"]
    flags = ["--launcher", launcher] if launcher else []
    done = run(world, *words, "--gpus", "2", *flags, "--max-restarts", "1")
    assert done.stderr.count("teacher is 'another' there, ") == 1
    assert done.stderr.count("error") == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "[2/2] train" in done.stdout and "restart 1" not in done.stdout  # the same command would end the same way


def test_the_check_asks_the_hub(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_hub() as (hub, requests):
        monkeypatch.setenv("HF_ENDPOINT", hub)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        done = run(world, "cache", "demo-with", *TINY, "teacher.path=owner/gated")
    assert done.stderr.count("owner/gated: gated (403)") == 1 and len(done.stderr.splitlines()) == 1
    assert sum("owner/gated" in each for each in requests) == 1
