"""Checks what a machine must have before `make setup` downloads anything.

The machine's own Python runs this file. It uses the standard library only.
"""

from __future__ import annotations  # an older Python must be able to read this file, to report its version

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

GB = 9  # disk space for the environment: the packages, and space to unpack them


def missing(folder: Path) -> list[str]:
    """Returns what is missing, each with the Debian package that provides it.

    `folder`: the environment's folder; it may not exist yet.
    """
    lacks = []
    if sys.version_info < (3, 11):  # noqa: UP036 (an older Python may run this file)
        lacks.append(f"Python 3.11 or newer; this is {sys.version.split()[0]} (make setup PYTHON=python3.11)")
    if not importlib.util.find_spec("ensurepip"):
        lacks.append("Python's venv module (python3-venv)")
    if not shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]):
        lacks.append("a C++ compiler (g++)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        lacks.append("Python's headers (python3-dev)")
    existing = next(each for each in (folder, *folder.parents) if each.is_dir())
    free = shutil.disk_usage(existing).free / 1e9
    if existing != folder and free < GB:
        lacks.append(f"{GB} GB in {existing}; {free:.1f} GB are free (use another folder: make setup VENV=FOLDER)")
    return lacks


if __name__ == "__main__":
    found = missing(Path(sys.argv[1]).absolute())
    if found:
        sys.exit("error: make setup needs\n  " + "\n  ".join(found))
