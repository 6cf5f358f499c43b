"""What a machine must have before `make setup` downloads anything: run by its own Python, standard library only."""

from __future__ import annotations  # an older Python is to read this, and to be told

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

GB = 9  # of packages, and room to unpack them, in the environment's folder


def missing(folder: Path) -> list[str]:
    """What is not here, each with the Debian package that brings it; `folder`: of the environment, new or there."""
    lacks = []
    if sys.version_info < (3, 11):  # noqa: UP036 (an older one may run this very file)
        lacks.append(f"Python 3.11 or newer; this is {sys.version.split()[0]} (make setup PYTHON=python3.11)")
    if not importlib.util.find_spec("ensurepip"):
        lacks.append("Python's venv module (python3-venv)")
    if not shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]):
        lacks.append("a C++ compiler (g++)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        lacks.append("Python's headers (python3-dev)")
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    free = shutil.disk_usage(there).free / 1e9
    if there != folder and free < GB:
        lacks.append(f"{GB} GB in {there}; {free:.1f} GB are free (make setup VENV=elsewhere)")
    return lacks


if __name__ == "__main__":
    found = missing(Path(sys.argv[1]).absolute())
    if found:
        sys.exit("error: make setup needs\n  " + "\n  ".join(found))
