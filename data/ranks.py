"""Which process this is among how many, as torchrun and the deepspeed launcher say it."""

import os


def rank() -> int:
    """Global rank of this process, 0 when it runs alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes on all hosts, 1 when this one runs alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))
