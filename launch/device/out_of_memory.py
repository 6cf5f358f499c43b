"""Names the setting that makes a computation fit, where a device runs out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from randcond.launch.errors import UserError

# What torch says in a plain RuntimeError, which has no class or number of its own: on a CPU, and where CUDA or one of
# its libraries asks for memory that torch's allocator does not manage.
_SAID = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def naming_memory(way_out: str) -> Iterator[None]:
    """Turns an out-of-memory error into a UserError. `way_out`: what makes it fit, in words (see smaller_batch())."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise UserError(f"out of memory: {way_out}; other programs may use this device too") from error


def smaller_batch(key: str, batch: int, whole: int = 0, further: str = "", others: str = "") -> str:
    """Returns how to lower a batch, in words.

    key: the setting with the number of samples at once
    batch: its value
    whole: the number that every batch must divide; 0: any batch will do
    further: what a lower batch asks for besides
    others: settings that would do instead

    >>> smaller_batch("cache.batch", 25, whole=1000)
    'set cache.batch=10 (now 25)'
    """
    if batch == 1:
        return f"{key} is 1 already" + (f"; set {others}" if others else "")
    lower = next(size for size in range(batch // 2, 0, -1) if whole % size == 0)
    return f"set {key}={lower} (now {batch}){further}" + (f", or {others}" if others else "")


def is_memory(error: BaseException) -> bool:
    """Returns True for an error of the host's or a device's memory."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(said in str(error) for said in _SAID)
