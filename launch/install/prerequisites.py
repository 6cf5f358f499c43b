"""Checks what a machine must have before `make setup` downloads anything.

`python3 launch/install/prerequisites.py FOLDER`. The machine's own Python runs this file. It uses the standard library
only, and no syntax that Python 3.6 can't read: an older Python must be able to report its version.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)  # Pythons that all packages of requirements.lock are built for
GLIBC = (2, 28)  # the oldest C library that they are built for
GB, CPU_GB = 10, 3  # disk space for the environment, and for one with PyTorch's CPU builds
UNPACK_GB, CPU_UNPACK_GB = 4, 1  # space for temporary files, while pip unpacks the packages


def missing(folder: Path, torch_index: str = "") -> "list[str]":
    """Returns what is missing, one line each, with the way out or the Debian package that provides it.

    `folder`: the environment's folder; it may not exist yet. `torch_index`: TORCH_INDEX, see packages.py.
    """
    return [*_platform(), *_python(), *_tools(), *_space(folder, "cpu" in torch_index)]


def _platform() -> "list[str]":
    """The packages have binaries for Linux on x86-64 with glibc alone."""
    system, machine = platform.system(), platform.machine()
    if (system, machine.lower()) not in (("Linux", "x86_64"), ("Linux", "amd64")):
        return [f"Linux on x86-64; this is {system} on {machine} (use such a machine, or a container on one)"]
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        oldest = ".".join(map(str, GLIBC))
        return [
            f"glibc {oldest} or newer; this is {name or 'another C library'} {version} (Debian 10, Ubuntu 20.04 and "
            f"RHEL 8 have it; or use a container: docs/install.md)"
        ]
    return []


def _python() -> "list[str]":
    lacks = []
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
        this = sys.version.split()[0]
        lacks.append(f"Python {oldest} to {newest}; this is {this} (make setup PYTHON=python{oldest})")
    elif sysconfig.get_config_var("Py_GIL_DISABLED"):
        lacks.append("a Python with its global lock; this one is free-threaded (make setup PYTHON=python3)")
    if not importlib.util.find_spec("ensurepip"):
        lacks.append("Python's venv module (python3-venv)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        lacks.append("Python's headers (python3-dev)")
    return lacks


def _tools() -> "list[str]":
    compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
    if not shutil.which(compiler):
        return [f"a C++ compiler; there is no {compiler} (g++; or make setup CXX=COMPILER)"]
    return []


def _space(folder: Path, cpu: bool) -> "list[str]":
    """`cpu`: the environment gets PyTorch's CPU builds."""
    existing = next(each for each in (folder, *folder.parents) if each.is_dir())
    if existing == folder:  # an environment that exists is only brought up to date
        return []
    wanted, unpack = (CPU_GB, CPU_UNPACK_GB) if cpu else (GB, UNPACK_GB)
    temporary = Path(tempfile.gettempdir())
    needs = {existing: (wanted, "make setup VENV=FOLDER")}
    if existing.stat().st_dev == temporary.stat().st_dev:
        needs[existing] = (wanted + unpack, "make setup VENV=FOLDER")
    else:
        needs[temporary] = (unpack, "TMPDIR=FOLDER make setup")
    lacks = []
    for place, (space, other) in needs.items():
        free = shutil.disk_usage(place).free / 1e9
        if free < space:
            lacks.append(f"{space} GB in {place}; {free:.1f} GB are free (use another folder: {other})")
    return lacks


if __name__ == "__main__":
    found = missing(Path(sys.argv[1]).absolute(), os.environ.get("TORCH_INDEX", ""))
    if found:
        sys.exit("error: make setup needs\n  " + "\n  ".join(found))
