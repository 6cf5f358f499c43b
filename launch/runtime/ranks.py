"""Which process this is among how many, and its device, as torchrun and the deepspeed launcher say it."""

import os

import torch


def rank() -> int:
    """Global rank of this process, 0 when it runs alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes on all hosts, 1 when this one runs alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_ranks() -> int:
    """Number of processes on this host, as torchrun, the deepspeed launcher or our job's script says it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


def device() -> torch.device:
    """This process's GPU (by its number on its own host), made the current one, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    mine = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(mine)  # synchronising, and libraries that name no device, mean this one
    return mine


def cpu_threads() -> int | None:
    """Threads of a CPU computation, which decide its last bits; None on a GPU, where they don't."""
    return None if torch.cuda.is_available() else torch.get_num_threads()
