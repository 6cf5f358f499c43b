"""Shared fixtures: the command line in a folder of its own, and one small world that the tests train in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # several test processes share the cores: no thread waits busily

# Small enough for a test, through the very stages, launcher and engine of the demo.
TINY = [
    "cache.size=96",
    "cache.batch=16",
    "cache.shard_size=32",
    "cache.steps=5",
    "train.steps=12",
    "train.global_batch=16",
    "train.warmup=2",
    "train.checkpoint_every=4",
    "train.log_every=2",
    "train.sample_every=6",
    "eval.size=16",
    "eval.batch=16",
    "eval.steps=5",
]


def randcond(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `randcond WORDS` in a folder and checks its exit code."""
    command = [sys.executable, "-m", "randcond.launch.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env={**os.environ})
    assert done.returncode == code, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the tiny demo has run once, every stage of both arms, by the deepspeed launcher on two ranks.

    Made once for all of pytest-xdist's processes; each has its own copy.
    """
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny-demo"
    with FileLock(made.with_suffix(".lock")):
        if not made.is_dir():
            unfinished = tmp_path_factory.mktemp("tiny-demo")
            randcond(unfinished, "run", "all", "demo", *TINY)
            unfinished.rename(made)
    folder = tmp_path_factory.mktemp("world")
    return Path(shutil.copytree(made, folder, dirs_exist_ok=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
