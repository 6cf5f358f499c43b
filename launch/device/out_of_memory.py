"""Names the setting that makes a computation fit, where a device runs out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from randcond.launch.errors import UserError


@contextmanager
def naming_memory(key: str, batch: int, others: str = "") -> Iterator[None]:
    """Turns an out-of-memory error into a UserError that names the key to lower.

    `key`: the setting with the number of samples at once. `batch`: its value. `others`: further ways, in words.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        smaller = f"set {key}={batch // 2} (now {batch})" if batch > 1 else f"{key} is 1 already"
        ways = f", or {others}" if others else ""
        raise UserError(
            f"out of memory: {smaller}{ways}; other programs may use this device too. `randcond plan` shows the "
            f"memory by part"
        ) from error


def _is_memory(error: BaseException) -> bool:
    """Returns True for an error of the host's or a device's memory."""
    import torch

    # On a CPU, torch raises a plain RuntimeError. It has no class or number of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
