"""Builds, once, the small C++ operator that DeepSpeed needs to run on a CPU; nothing to do on a GPU machine."""

import os
import sys
from pathlib import Path

from deepspeed.accelerator import get_accelerator


def find_tools() -> None:
    """Puts this Python's own folder on PATH: there pip puts ninja, which DeepSpeed calls by name on every start."""
    own = str(Path(sys.executable).parent)
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if own not in places:
        os.environ["PATH"] = os.pathsep.join([own, *places])


def main() -> None:
    """Compiles DeepSpeed's shared-memory communication operator into torch's extension cache."""
    if get_accelerator().device_name() != "cpu":
        return
    find_tools()
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    builder.load(verbose=False)
    print("built DeepSpeed's CPU operator")


if __name__ == "__main__":
    main()
