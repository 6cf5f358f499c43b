"""The GPUs that CUDA_VISIBLE_DEVICES leaves visible: by index (4,5), by name (GPU-..., MIG-...), none (-1, empty)."""

import os
import re
from itertools import takewhile
from pathlib import Path

from randcond.launch.config.gpus import nvidia_here
from randcond.launch.errors import UserError

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str] | None:
    """Returns the entries of CUDA_VISIBLE_DEVICES that CUDA takes, or None if it is not set: then all are visible.

    As in CUDA, an entry that is no GPU (-1, none) hides itself and all that follow. So -1 or an empty value hides all.
    """
    value = os.environ.get(VARIABLE)
    if value is None:
        return None
    return list(takewhile(lambda name: re.fullmatch(r"\d+|(?:GPU|MIG)-\S+", name), map(str.strip, value.split(","))))


def gpus_here() -> bool:
    """Returns True if this machine has an NVIDIA GPU that is not hidden. Needs no torch."""
    return nvidia_here() and visible_gpus() != []


def count_gpus(devices: Path = Path("/dev")) -> int:
    """Returns the number of this machine's GPUs, or of those that a container was given. Needs no torch."""
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.iterdir())


def choose_gpus(ranks: int, installed: int) -> list[str]:
    """Returns the GPUs for the ranks on this machine, one each, as CUDA_VISIBLE_DEVICES names them. []: the first ones.

    `installed`: the number of this machine's GPUs; 0: unknown. Raises UserError if the variable does not name enough.
    """
    names = visible_gpus()
    if names is None:
        return []
    shown = f"{VARIABLE}={','.join(names)}"
    if len(set(names)) < len(names):
        raise UserError(f"{shown} names a GPU twice, and CUDA then shows none; name each once")
    if len(names) < ranks:
        raise UserError(f"{shown} lists {len(names)} GPUs, but {ranks} ranks need one each; use --gpus {len(names)}")
    if any(name.startswith("MIG-") for name in names):
        raise UserError(
            f"{shown}: a process sees one MIG device only, and NCCL joins no MIG devices; use one rank (--gpus 1)"
        )
    if missing := [name for name in names if name.isdigit() and int(name) >= installed > 0]:
        raise UserError(f"{shown}: there is no GPU {missing[0]}; this machine has {installed}, numbered from 0")
    return names[:ranks]
