"""Rank, world size and device of this process, from the environment that the launcher sets."""

import os
import platform

import torch

from randcond.launch.errors import UserError
from randcond.launch.machine.visible_gpus import VARIABLE
from randcond.launch.runtime.processes import RANKS_FROM


def rank() -> int:
    """Returns the global rank of this process; 0 if it runs alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Returns the number of processes on all hosts; 1 if this one runs alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_ranks() -> int:
    """Returns the number of processes on this host, as set by torchrun, the deepspeed launcher or our job's script."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


def device() -> torch.device:
    """Returns this process's GPU, chosen by its local rank, and makes it the current one.

    Returns the CPU if there is no GPU. Under srun each rank may see its own GPU alone. Raises UserError if there are
    fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, visible = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if visible == 1 and os.environ.get(RANKS_FROM) == "slurm":
        number = 0
    if number >= visible:
        raise UserError(
            f"each rank needs a GPU of its own, but {platform.node()} shows {visible} for {local_ranks()} ranks "
            f"({VARIABLE}: {os.environ.get(VARIABLE, 'not set')}); start as many ranks as GPUs (--gpus {visible})"
        )
    mine = torch.device("cuda", number)
    torch.cuda.set_device(mine)  # for synchronize(), and for libraries that name no device
    return mine


def device_name() -> str:
    """Returns the name of this process's device; of a CPU the number of cores that it may use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(device())
    return f"CPU, {len(os.sched_getaffinity(0))} cores"


def cpu_threads() -> int | None:
    """Returns the number of CPU threads, on which the last bits of results depend; None on a GPU."""
    return None if torch.cuda.is_available() else torch.get_num_threads()
