"""The device of this machine, as plans take it: a known GPU by its data sheet, anything else as measured."""

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from randcond.launch.config.gpus import Gpu, gpu_of
from randcond.launch.runtime.ranks import device

_CONTEXT = 600_000_000  # bytes of CUDA itself in this process, at most; Gpu.overhead_gb counts them
_SIDE = 2048  # of the square matrices that measure an unknown device; of a CPU: a quarter
_MEASURING = 0.5  # seconds
# The memory of a container, in both versions of cgroups: its limit, what its processes use, and of that the page cache.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class Here:
    """The device that a rank gets."""

    name: str  # as the driver says it; "CPU, 2 cores"
    gpu: Gpu
    measured: bool = False  # True if `gpu.tflops` was measured, and is not from a data sheet
    host_gb: float = math.inf  # memory of the host that is available to all ranks

    @property
    def cpu(self) -> bool:
        """True if it is a CPU."""
        return self.gpu.host


def device_here(ranks: int, measured_in: torch.dtype | None = None) -> Here:
    """Returns the device of each of `ranks` ranks on this machine.

    Without a GPU, each rank gets its share of the memory that is available. `measured_in`: the dtype in which to
    measure the speed of a device without a known data sheet, which takes under a second; None: its speed is 1 TFLOP/s.
    """
    where, available = device(), _available() / 1e9
    if where.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        speed = _tflops(where, measured_in) / ranks if measured_in else 1.0
        cpu = Gpu(speed, available / ranks, 10, 1, 1, 0.7, 3e-5, host=True)
        return Here(f"CPU, {cores} cores", cpu, measured_in is not None, available)
    properties = torch.cuda.get_device_properties(where)
    size, cores = (properties.total_memory - _of_others(where)) / 1e9, properties.multi_processor_count
    if known := gpu_of(properties.name):
        return Here(properties.name, replace(known, memory_gb=size, cores=cores), host_gb=available)
    speed = _tflops(where, measured_in) if measured_in else 1.0
    return Here(properties.name, Gpu(speed, size, 32, 3, cores), measured_in is not None, available)


def _of_others(gpu: torch.device) -> int:
    """Returns the bytes of a GPU that other programs hold, such as a desktop."""
    free, total = torch.cuda.mem_get_info(gpu)
    return max(0, total - free - torch.cuda.memory_reserved(gpu) - _CONTEXT)


def _available() -> int:
    """Returns the bytes of host memory that processes can still get, within the limit of a container."""
    free = psutil.virtual_memory().available
    for folder, limit, used, cached in _CGROUPS:
        limits = (folder / limit).read_text().strip() if (folder / limit).is_file() else "max"
        if limits.isdigit():
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = min(free, int(limits) - int((folder / used).read_text()) + int(facts.get(cached, 0)))
    return max(0, int(free))


def _tflops(where: torch.device, dtype: torch.dtype) -> float:
    """Returns the TFLOP/s of this process's matrix products on a device."""
    side = _SIDE if where.type == "cuda" else _SIDE // 4
    one, other = (torch.ones(side, side, dtype=dtype, device=where) for _ in range(2))
    best, end = 0.0, time.perf_counter() + _MEASURING
    while (started := time.perf_counter()) < end:  # the best of many, because other programs slow some of them
        (one @ other)[0, 0].item()  # waits for the device
        best = max(best, 2 * side**3 / (time.perf_counter() - started) / 1e12)
    return best
