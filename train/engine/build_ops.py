"""Builds, once, the small C++ operator that DeepSpeed needs to run on a CPU; nothing to do on a GPU machine."""

import os
import sys
from pathlib import Path

from torch.utils.cpp_extension import _get_build_directory

from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.processes import name_accelerator

LONGEST_BUILD = 600.0  # seconds that another process may take for it


def find_tools() -> None:
    """Puts this Python's own folder on PATH: there pip puts ninja, which DeepSpeed calls by name on every start."""
    own = str(Path(sys.executable).parent)
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if own not in places:
        os.environ["PATH"] = os.pathsep.join([own, *places])


def load_operator() -> bool:
    """Loads the operator into this process, compiled where it is not yet; whether this machine needs it.

    Torch locks an extension by a file, which a process that is killed meanwhile leaves behind, and every later one
    would wait for: it is removed under a lock of ours, which the system lets go of.
    """
    from deepspeed.accelerator import get_accelerator  # looks for a GPU, and warns where nothing says there is none

    find_tools()
    if get_accelerator().device_name() != "cpu":
        return False
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with locked(folder, LONGEST_BUILD):
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
    return True


def main() -> None:
    """Compiles DeepSpeed's shared-memory communication operator into torch's extension cache."""
    name_accelerator()
    if load_operator():
        print("built DeepSpeed's CPU operator")


if __name__ == "__main__":
    main()
