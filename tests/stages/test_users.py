"""Users as machines have them: without an entry in /etc/passwd, without HOME, with a home that can't be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.demo import TINY
from tests.support.users import AS_NOBODY, USER, needs_another_user

pytestmark = [pytest.mark.heavy, needs_another_user]


def run_as_nobody(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    command = [*AS_NOBODY, sys.executable, "-m", "randcond.launch.cli", *words]
    return subprocess.run(command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize("engine", ["deepspeed", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_training_of_a_user_whom_nobody_knows(world: Path, tmp_path: Path, engine: str) -> None:
    """Without HOME, and with a HOME that can't be written."""
    environment = {"TMPDIR": str(tmp_path)}
    said = f"HOME is not set, and user id {USER} has no entry in /etc/passwd"
    if engine == "fsdp":
        (tmp_path / "home").mkdir(mode=0o555)
        environment["HOME"] = str(tmp_path / "home")
        said = f"{tmp_path / 'home'} can't be written: caches go to {tmp_path}/randcond-{USER}"
    words = ["demo-with", *TINY, "train.steps=2", "train.sample_every=0", f"paths.run=runs/{engine}", "--gpus", "1"]
    done = run_as_nobody(world, "run", "train", *words, f"engine.kind={engine}", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(said) == 1 and "Traceback" not in done.stderr
    assert (world / f"runs/{engine}/student/model_index.json").is_file()
    assert not (world / "~").exists() and not list((tmp_path / "home").glob("*"))


def test_copies_of_a_remote_cache_need_a_folder(world: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o555)
    words = ["demo-with", *TINY, "paths.cache=http://127.0.0.1:9/cache", "paths.run=runs/theirs", "--gpus", "1"]
    environment = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home")}
    done = run_as_nobody(world, "run", "train", *words, **environment)
    local = tmp_path / "home/.cache/randcond/http-127.0.0.1:9-cache"
    assert done.returncode == 2 and done.stderr.count("error: ") == 1, done.stderr
    assert f"error: cache.local: {local} can't be made (Permission denied); set it to another folder" in done.stderr
