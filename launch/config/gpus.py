"""Data-sheet figures of GPUs: plans use them, and measured speeds are compared with them."""

from dataclasses import dataclass
from pathlib import Path

from randcond.launch.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One GPU of a host. Bandwidths are for one direction."""

    tflops: float  # dense bf16, TFLOP/s
    memory_gb: float  # 1e9 bytes
    within_gb_s: float  # GB/s to the other GPUs of its host, over NVLink if there is one
    across_gb_s: float  # GB/s: its share of a typical host's network
    cores: int  # streaming multiprocessors


def nvidia_here() -> bool:
    """Returns True if this machine has an NVIDIA GPU. Needs no torch."""
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
_DEVICE_NAMES = {  # part of the driver's device name -> short name; the most specific first
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
    """Returns a GPU by its short name. Raises UserError with the known names if there is none."""
    if name not in GPUS:
        raise UserError(f"--gpu: unknown {name!r}; known: {', '.join(GPUS)}")
    return GPUS[name]


def gpu_of(device_name: str) -> Gpu | None:
    """Returns the GPU with a driver's device name ("NVIDIA H100 80GB HBM3"), or None if it is unknown."""
    return next((GPUS[short] for part, short in _DEVICE_NAMES.items() if part in device_name), None)
