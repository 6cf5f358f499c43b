"""Data-sheet figures of GPUs: plans use them, and measured speeds are compared with them."""

import re
from dataclasses import dataclass
from pathlib import Path

from randcond.launch.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One GPU of a host. Bandwidths are for one direction."""

    tflops: float  # dense bf16 with fp32 sums, TFLOP/s
    memory_gb: float  # 1e9 bytes
    within_gb_s: float  # GB/s to the other GPUs of its host, over NVLink if there is one
    across_gb_s: float  # GB/s: its share of a typical host's network
    cores: int  # streaming multiprocessors
    overhead_gb: float = 2.0  # of a process besides its tensors: CUDA, NCCL, cuDNN, slack of the allocator
    shortest_kernel: float = 5e-6  # seconds, assumed; predicts MLPerf's curve to 1, 4, 15 % (64, 512, 1,024 GPUs)
    host: bool = False  # a CPU: its memory is the host's


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
    "a30": Gpu(165, 24, 32, 6, 56),
    "l4": Gpu(121, 24, 32, 6, 58),
    "a10": Gpu(125, 24, 32, 6, 72),
    "a6000": Gpu(155, 48, 32, 6, 84),
    "rtx6000-ada": Gpu(364, 48, 32, 6, 142),
    "rtx5090": Gpu(209, 32, 64, 3, 170),
    "rtx4090": Gpu(165, 24, 32, 3, 128),
    "rtx4080": Gpu(97, 16, 32, 3, 76),
    "rtx4070": Gpu(58, 12, 32, 3, 46),
    "rtx4060": Gpu(30, 8, 16, 3, 24),
    "rtx3090": Gpu(71, 24, 32, 3, 82),
    "rtx3080": Gpu(60, 10, 32, 3, 68),
    "rtx3060": Gpu(26, 12, 32, 3, 28),
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
    "RTX A6000": "a6000",
    "RTX 6000 Ada": "rtx6000-ada",
}
_WHOLE_NAMES = {  # longer names are those of other GPUs: L40, A10G, RTX 4070 Ti, RTX 4090 Laptop GPU
    **{f"NVIDIA {name}": name.lower() for name in ("L4", "A30", "A10")},
    **{
        f"NVIDIA GeForce RTX {name}": f"rtx{name}"
        for name in ("5090", "4090", "4080", "4070", "4060", "3090", "3080", "3060")
    },
}
_BY_HAND = re.compile(r"(?P<gb>\d+(\.\d+)?)gb,(?P<tflops>\d+(\.\d+)?)tflops")


def find_gpu(name: str) -> Gpu:
    """Returns a GPU by its short name, or one that is given by hand: `11GB,27TFLOPS`.

    The other figures of a GPU given by hand are those of a card in a workstation. Raises UserError with the known names
    if there is no such GPU.
    """
    if name in GPUS:
        return GPUS[name]
    if found := _BY_HAND.fullmatch(name.lower().replace(" ", "")):
        gb, tflops = float(found["gb"]), float(found["tflops"])
        if gb and tflops:
            return Gpu(tflops, gb, 32, 3, max(8, round(0.8 * tflops)))
    if re.fullmatch(r"\d+(\.\d+)?(gb|tflops)", name.lower()):
        raise UserError(f"--gpu: {name} is half of it: give memory and bf16 speed, such as 11GB,27TFLOPS")
    raise UserError(
        f"--gpu: unknown {name!r}; known: {', '.join(GPUS)}; or memory and bf16 speed of your own: 11GB,27TFLOPS"
    )


def short_name(device_name: str) -> str:
    """Returns the short name of a GPU with a driver's device name ("NVIDIA H100 80GB HBM3"), or "" if it is unknown.

    A part of a GPU (MIG) is unknown: it has a part of the speed.
    """
    if device_name in _WHOLE_NAMES:
        return _WHOLE_NAMES[device_name]
    parts = () if " MIG " in device_name else _DEVICE_NAMES.items()
    return next((short for part, short in parts if part in device_name), "")


def gpu_of(device_name: str) -> Gpu | None:
    """Returns the GPU with a driver's device name, or None if it is unknown."""
    return GPUS.get(short_name(device_name))
