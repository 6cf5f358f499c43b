"""Setup: missing requirements are reported before any download, and the environment's tools are found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from randcond.launch import prerequisites as needs
from randcond.launch.config.paths import PACKAGE
from randcond.train.engine.build_ops import find_tools
from tests.support.patience import HANG


def ask(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PACKAGE / "launch/prerequisites.py"), str(folder)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_machine_that_has_all_is_told_nothing() -> None:
    done = ask(Path(sys.prefix), CXX="env c++")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_a_machine_lacks_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ask(Path(sys.prefix), CXX="no-such-compiler")
    assert done.returncode == 1 and done.stderr == "error: make setup needs\n  a C++ compiler (g++)\n"
    monkeypatch.setattr(needs, "GB", 1e9)
    (lacks,) = needs.missing(tmp_path / "new" / "venv")
    assert lacks.startswith(f"1000000000.0 GB in {tmp_path};") and not needs.missing(tmp_path)  # it exists


def test_ninja_is_found_where_no_shell_has_the_environment_on_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed calls ninja by name on every start on a CPU, and `make` does not add the environment to PATH."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert not shutil.which("ninja")
    find_tools()
    find_tools()
    assert shutil.which("ninja") == str(Path(sys.executable).parent / "ninja")
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}:/nowhere"


@pytest.mark.heavy
def test_a_lock_that_a_killed_process_left_is_not_waited_for(tmp_path: Path) -> None:
    """Torch locks an operator by a file. The file stays if the process is killed by kill -9 while it builds."""
    shutil.copytree(Path(sys.prefix) / "torch_extensions", tmp_path / "built")
    (lock,) = [folder / "lock" for folder in (tmp_path / "built").iterdir()]
    lock.touch()
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    environment.pop("DS_ACCELERATOR", None)
    command = [sys.executable, "-m", "randcond.train.engine.build_ops"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0 and "built DeepSpeed's CPU operator" in done.stdout and not lock.exists()
    assert "Setting accelerator" not in done.stdout + done.stderr  # DeepSpeed does not look for a GPU
