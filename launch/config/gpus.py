"""What a GPU can do, by its maker's data sheet: the floor that speeds are measured against and plans are made with."""

from dataclasses import dataclass
from pathlib import Path

from randcond.launch.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One GPU of a host; bandwidths are of one direction."""

    tflops: float  # dense bf16, TFLOP/s
    memory_gb: float  # 1e9 bytes
    within_gb_s: float  # to the other GPUs of its host, NVLink where it has it, GB/s
    across_gb_s: float  # its share of the host's usual network, GB/s
    cores: int  # streaming multiprocessors


def nvidia_here() -> bool:
    """Whether this machine has a GPU of NVIDIA's, asked without torch."""
    return Path("/dev/nvidiactl").exists()


GPUS = {
    "a100-40": Gpu(312, 40, 300, 25, 108),
    "a100-80": Gpu(312, 80, 300, 25, 108),
    "h100": Gpu(989, 80, 450, 50, 132),
    "h100-pcie": Gpu(756, 80, 64, 25, 114),
    "h100-nvl": Gpu(835, 94, 300, 50, 132),
    "h200": Gpu(989, 141, 450, 50, 132),
    "h200-nvl": Gpu(835, 141, 450, 50, 132),
    "b200": Gpu(2250, 180, 900, 50, 148),
    "gb200": Gpu(2500, 186, 900, 50, 152),
    "l40s": Gpu(362, 48, 32, 12.5, 142),
    "rtx4090": Gpu(165, 24, 32, 3, 128),
}
_DEVICE_NAMES = {  # as the driver says it, the most special first
    "A100-SXM4-40": "a100-40",
    "A100-PCIE-40": "a100-40",
    "A100": "a100-80",
    "H100 PCIe": "h100-pcie",
    "H100 NVL": "h100-nvl",
    "H100": "h100",
    "H200 NVL": "h200-nvl",
    "H200": "h200",
    "GB200": "gb200",
    "B200": "b200",
    "L40S": "l40s",
    "4090": "rtx4090",
}


def find_gpu(name: str) -> Gpu:
    """A GPU by its short name; raises UserError listing them."""
    if name not in GPUS:
        raise UserError(f"--gpu: unknown {name!r}; known: {', '.join(GPUS)}")
    return GPUS[name]


def gpu_of(device_name: str) -> Gpu | None:
    """The GPU that a driver's device name ("NVIDIA H100 80GB HBM3") stands for, if it is known."""
    return next((GPUS[short] for part, short in _DEVICE_NAMES.items() if part in device_name), None)
