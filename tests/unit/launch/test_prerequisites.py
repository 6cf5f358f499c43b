"""Setup: missing requirements are reported before any download, and the environment's tools are found."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from randcond.launch.config.paths import PACKAGE
from randcond.launch.install import prerequisites as needs
from randcond.train.engine.build_ops import find_tools
from tests.support.patience import HANG


def ask(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PACKAGE / "launch/install/prerequisites.py"), str(folder)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_machine_that_has_all_is_told_nothing() -> None:
    done = ask(Path(sys.prefix), CXX="env c++")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_a_machine_lacks_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ask(Path(sys.prefix), CXX="no-such-compiler")
    text = "a C++ compiler; there is no no-such-compiler (g++; or make setup CXX=COMPILER)"
    assert done.returncode == 1 and done.stderr == f"error: make setup needs\n  {text}\n"
    monkeypatch.setattr(needs, "GB", 1e9)
    monkeypatch.setattr(needs, "UNPACK_GB", 0)
    (lacks,) = needs.missing(tmp_path / "new" / "venv")
    assert lacks.startswith(f"1000000000.0 GB in {tmp_path};") and lacks.endswith("make setup VENV=FOLDER)")
    assert not needs.missing(tmp_path)  # it exists
    assert not needs.missing(tmp_path / "new", "http://localhost/whl/cpu")  # needs less


def test_space_for_temporary_files_is_asked_for_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "UNPACK_GB", 1e9)
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")  # a disk of its own
    (lacks,) = needs.missing(tmp_path / "new")
    assert lacks.startswith("1000000000.0 GB in /dev/shm;") and lacks.endswith("TMPDIR=FOLDER make setup)")


def test_another_platform_or_python_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["setarch", "i686", sys.executable, str(PACKAGE / "launch/install/prerequisites.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Linux on x86-64; this is Linux on i686 (use such a machine, or a container on one)" in done.stderr
    this = ".".join(map(str, sys.version_info[:2]))
    monkeypatch.setattr(needs, "NEWEST", (3, 10))
    (lacks,) = needs.missing(tmp_path)
    assert lacks.startswith(f"Python 3.11 to 3.10; this is {this}.") and "PYTHON=python3.11" in lacks
    monkeypatch.undo()
    monkeypatch.setattr(needs, "GLIBC", (99, 0))
    (lacks,) = needs.missing(tmp_path)
    assert lacks.startswith("glibc 99.0 or newer; this is glibc 2.")


def test_an_old_python_can_read_what_it_lacks() -> None:
    """Python 3.6, which RHEL 8 has as python3, knows neither := nor list[str] nor the annotations of the future."""
    text = (PACKAGE / "launch/install/prerequisites.py").read_text()
    tree = ast.parse(text, feature_version=(3, 7))
    assert "from __future__" not in text
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            annotations = [node.returns, *(argument.annotation for argument in node.args.args)]
            assert all(isinstance(each, ast.Name | ast.Constant | None) for each in annotations)


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
