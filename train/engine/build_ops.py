"""Compiles the C++ operator that DeepSpeed needs on a CPU. Does nothing on a GPU machine."""

import os
import shutil
import sys
from pathlib import Path

from torch.utils.cpp_extension import _get_build_directory

from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.processes import name_accelerator
from randcond.model_zoo.kernels.library_path import quote_library_path

BUILD_TIMEOUT = 600.0  # seconds to wait for another process that compiles the operator


def find_tools() -> None:
    """Adds the folder of this Python to PATH, where pip installs ninja. DeepSpeed calls ninja by name."""
    python_folder = str(Path(sys.executable).parent)
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if python_folder not in folders:
        os.environ["PATH"] = os.pathsep.join([python_folder, *folders])


def load_operator() -> bool:
    """Loads the operator into this process and compiles it if necessary. Returns False if this machine has a GPU.

    Torch locks an extension with a file. If a process is killed while it compiles, that file stays, and every later
    process waits for it forever. So it is removed first, under a lock that the system releases when its owner dies.
    """
    # Imported here, because it looks for a GPU, and prints a warning unless name_accelerator() was called before.
    from deepspeed.accelerator import get_accelerator

    find_tools()
    if get_accelerator().device_name() != "cpu":
        return False
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    folder = Path(_get_build_directory(builder.name, verbose=False))
    quote_library_path()
    with locked(folder, BUILD_TIMEOUT):
        _copy_from_environment(folder, f"{builder.name}.so")
        (folder / "lock").unlink(missing_ok=True)
        if not (folder / f"{builder.name}.so").is_file():
            log.info("compiling DeepSpeed's operator for CPUs: half a minute, once")
        builder.load(verbose=False)
    return True


def _copy_from_environment(folder: Path, library: str) -> None:
    """Copies the operator that `make setup` has compiled, for a user who can't write into the environment."""
    compiled = Path(sys.prefix, "torch_extensions", folder.name)
    if not (folder / library).is_file() and (compiled / library).is_file() and compiled != folder:
        shutil.copytree(compiled, folder, ignore=shutil.ignore_patterns("lock", ".lock"), dirs_exist_ok=True)


def main() -> None:
    """Compiles DeepSpeed's operator for communication over shared memory into torch's folder of extensions."""
    name_accelerator()
    if load_operator():
        print("built DeepSpeed's CPU operator")


if __name__ == "__main__":
    main()
