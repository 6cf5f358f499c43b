"""Setup: the packages come from the lock file, by pip or uv; torch comes from another index, and stays from there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from randcond.launch.install import packages
from tests.support import web, wheels
from tests.support.environments import ROOT
from tests.support.patience import HANG

TORCH = {"torch": "2.10.0", "torchvision": "0.25.0"}
CUDA = {"nvidia-nccl-cu12": "2.27.5", "triton": "3.6.0", "xformers": "0.0.35"}
CPU = {name: f"{version}+cpu" for name, version in TORCH.items()}
OTHER = {"tiny-tool": "1.0"}


@pytest.fixture(scope="module")
def lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Yields the text of a lock file, the address of an index with its packages, and that of torch's CPU builds."""
    root = tmp_path_factory.mktemp("indexes")
    tools = {name: wheels.packed(root / "all", name) for name in ("setuptools", "wheel", "packaging")}
    for name, version in {**OTHER, **CUDA}.items():
        wheels.tiny(root / "all", name, version)
    wheels.tiny(root / "all", "torch", TORCH["torch"], "nvidia-nccl-cu12==2.27.5", "triton==3.6.0", "tiny-tool")
    wheels.tiny(root / "all", "torchvision", TORCH["torchvision"], "torch==2.10.0")
    wheels.tiny(root / "cpu", "torch", CPU["torch"], "tiny-tool")
    wheels.tiny(root / "cpu", "torchvision", CPU["torchvision"], "torch==2.10.0")
    pins = [f"{name}=={version}" for name, version in {**tools, **OTHER, **TORCH, **CUDA}.items()]
    with web.plain(root) as address:
        yield "\n".join(["# Exact versions", *pins, ""]), f"{address}/all", f"{address}/cpu"


def make(folder: Path, index: str, uv: str, *words: str, code: int = 0) -> str:
    """Runs `make packages` in a folder with a lock file of its own, and returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "TORCH_"))}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_NO_CACHE_DIR": "1"}
    environment |= {"UV_NO_CONFIG": "1", "UV_DEFAULT_INDEX": index, "UV_CACHE_DIR": str(folder / "uv-cache")}
    command = ["make", "--no-print-directory", "packages", f"PYTHON={sys.executable}", f"UV={uv}", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def clone(folder: Path, lock: str) -> Path:
    """Makes a folder with the part of the clone that sets up packages, and a lock file."""
    shutil.copytree(ROOT / "launch/install", folder / "launch/install")
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.lock").write_text(lock)
    return folder


def found(folder: Path, *names: str) -> dict[str, str]:
    """Returns the versions of those of these packages that the environment has."""
    command = [str(folder / ".venv/bin/python"), "-c", packages.LISTING]
    installed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {name: installed[name] for name in names if name in installed}


@pytest.mark.heavy
@pytest.mark.parametrize("by", [pytest.param("pip", marks=pytest.mark.slow), "uv"])
def test_torch_comes_from_another_index_and_stays_from_there(
    by: str, lock: tuple[str, str, str], tmp_path: Path
) -> None:
    text, index, cpu = lock
    folder = clone(tmp_path / "clone", text)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") if by == "uv" else ""
    assert uv is not None, "run `make setup`, which installs uv for the tests"
    names = [*TORCH, *CUDA, *OTHER]

    said = make(folder, index, uv)
    assert found(folder, *names) == {**TORCH, **CUDA, **OTHER}
    assert said.startswith(f"setting up .venv with {by}: ") and "make setup TORCH_INDEX=URL" in said
    assert len(said.splitlines()) == 1

    said = make(folder, index, uv, f"TORCH_INDEX={cpu}")
    assert found(folder, *names) == {**CPU, **OTHER}
    assert said.splitlines()[-1] == "torch 2.10.0+cpu is installed, without xformers"

    make(folder, index, uv, f"TORCH_INDEX={cpu}")  # again: nothing changes
    os.utime(folder / "requirements.lock")  # as after a change of the lock file
    make(folder, index, uv)
    assert found(folder, *names) == {**CPU, **OTHER}
    assert found(folder, "pip")

    (folder / "requirements.lock").write_text(text.replace("torchvision==0.25.0", "torchvision==0.26.0"))
    said = make(folder, index, uv, f"TORCH_INDEX={cpu}", code=2)
    assert "torchvision==0.26.0" in said  # the installer's own words, which come first
    assert ("error: .venv is not set up: see the message above" + ("; `make setup UV=`" if uv else "")) in said

    (folder / "requirements.lock").write_text(text.replace("torch==2.10.0", "torch==2.11.0"))
    said = make(folder, index, uv, code=2)
    assert f"error: torch 2.11.0 must be installed from {cpu}: run make setup TORCH_INDEX=URL" in said


def test_an_index_is_an_address(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch/install/packages.py"), str(tmp_path / "venv")]
    done = subprocess.run(command, env={**os.environ, "TORCH_INDEX": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "venv").exists()
    assert done.stderr == "error: TORCH_INDEX is 'cpu', expected the address (URL) of a package index\n"


def test_the_record_of_an_index_holds_no_secret() -> None:
    assert packages.without_secrets("https://me:secret@host:8/whl/cpu?key=1#a") == "https://host:8/whl/cpu"


def test_every_line_of_the_lock_is_read() -> None:
    pins = packages.pins(ROOT / "requirements.lock")
    assert pins["torch"].count(".") == 2 and set(packages.TORCH) <= set(pins)
    left_out = {name for name in pins if packages.OF_TORCH.fullmatch(name)}
    assert {"torch", "torchvision", "triton", "xformers", "cuda-bindings", "nvidia-cudnn-cu12"} <= left_out
    assert "torch_fidelity" not in left_out
