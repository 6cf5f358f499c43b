"""Installs the packages of a lock file into an environment, by pip or by uv: what `make setup` runs.

`python3 launch/install/packages.py FOLDER [LOCK]`. The machine's own Python runs this file, and it uses the standard
library only. In: a lock file with lines NAME==VERSION, and two environment variables. TORCH_INDEX is the address of a
package index that torch and torchvision come from, in place of the index of all other packages. UV is the path of uv
(default: uv, if it is on PATH; empty: pip). Out: the environment FOLDER.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
TORCH = ("torch", "torchvision")
# What belongs to one build of torch. Torch's own requirements bring what another build needs.
OF_TORCH = re.compile(r"torch|torchvision|triton|xformers|nvidia-.*|cuda-.*")
RECORD = ".torch-index"  # in the environment: the index that torch came from; no such file: that of all packages
LISTING = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"


class Environment:
    """A virtual environment, and the program that installs packages into it."""

    def __init__(self, folder: Path, uv: str) -> None:
        """`uv`: path of uv; empty: pip."""
        self.folder, self.uv = folder, uv
        self.python = folder / "bin" / "python"

    def create(self) -> None:
        """Creates the environment, unless it is there. It gets pip, also for uv, because users expect it."""
        if not (self.folder / "bin" / "pip").exists():  # made last, so an environment without it is not finished
            self._run([sys.executable, "-m", "venv", str(self.folder)])

    def install(self, *words: str) -> None:
        """Installs packages; `words` are arguments of `pip install`, which uv takes too."""
        self._call("install", *words)

    def uninstall(self, names: list[str]) -> None:
        """Removes packages."""
        self._call("uninstall", *([] if self.uv else ["--yes"]), *names)

    def installed(self) -> dict[str, str]:
        """Returns the installed packages: name -> version."""
        shown = subprocess.run([str(self.python), "-c", LISTING], stdout=subprocess.PIPE, check=True)
        found: dict[str, str] = json.loads(shown.stdout)
        return found

    def _call(self, command: str, *words: str) -> None:
        if self.uv:
            self._run([self.uv, "pip", command, "--quiet", "--python", str(self.python), *words])
        else:
            quiet = ["--quiet", "--disable-pip-version-check"]
            self._run([str(self.python), "-m", "pip", command, *quiet, *words])

    def _run(self, command: list[str]) -> None:
        if subprocess.run(command).returncode:
            other = "; `make setup UV=` installs with pip" if self.uv else ""
            sys.exit(f"error: {self.folder} is not set up: see the message above{other}")


def pins(lock: Path) -> dict[str, str]:
    """Returns the packages of a lock file: name -> version."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if line)


def without_secrets(url: str) -> str:
    """Returns an address without user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def install_with_other_torch(environment: Environment, lock: dict[str, str], index: str) -> None:
    """Installs the packages of a lock file, torch and torchvision from an index of their own.

    xformers is left out, because it fits only the build of torch that it was made for. `index`: its address; empty:
    keep torch as it is installed.
    """
    rest = [f"{name}=={version}" for name, version in lock.items() if not OF_TORCH.fullmatch(name)]
    environment.install("--no-deps", *rest)  # with dependencies, some of them would bring torch
    record = environment.folder / RECORD
    present = environment.installed()
    if not index:
        if present.get("torch", "").partition("+")[0] != lock["torch"]:
            came = record.read_text().strip()
            sys.exit(f"error: torch {lock['torch']} must be installed from {came}: run make setup TORCH_INDEX=URL")
        return
    if "torch" in present and (not record.is_file() or record.read_text().strip() != without_secrets(index)):
        environment.uninstall([name for name in present if OF_TORCH.fullmatch(name)])
    environment.install(
        "--default-index" if environment.uv else "--index-url", index, *(f"{name}=={lock[name]}" for name in TORCH)
    )
    record.write_text(without_secrets(index) + "\n")
    print(f"torch {environment.installed()['torch']} is installed, without xformers")


def main(folder: Path, lock: Path) -> None:
    """Creates the environment and installs the packages of the lock file."""
    index = os.environ.get("TORCH_INDEX", "").strip()
    if index and "://" not in index:
        sys.exit(f"error: TORCH_INDEX is {index!r}, expected the address (URL) of a package index")
    environment = Environment(folder, os.environ.get("UV", shutil.which("uv") or "").strip())
    by = "uv" if environment.uv else "pip"
    other = bool(index) or (folder / RECORD).is_file()
    size = (
        "torch is not from the index of the other packages"
        if other
        else "9 GB, most of it torch and CUDA's libraries; 2.5 GB with PyTorch's CPU builds: make setup TORCH_INDEX=URL"
    )
    print(f"setting up {folder} with {by}: a few minutes; {size}", flush=True)
    environment.create()
    environment.install("-c", str(lock), "setuptools", "wheel")  # they build deepspeed
    if other:
        install_with_other_torch(environment, pins(lock), index)
    else:
        environment.install("-r", str(lock))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else LOCK)
