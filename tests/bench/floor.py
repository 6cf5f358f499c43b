"""The lower bound of a step's time: FLOP over the measured matmul rate, bytes over the memory rate.

The bytes are those of all ops except matrix products, convolutions and attention, run op by op. Fusion can save these
bytes at most.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.forward import blank_forward

_PRODUCTS = ("convolution", "addmm", "mm", "bmm", "baddbmm", "_scaled_dot_product")
_VIEWS = ("view", "reshape", "permute", "transpose", "t", "unsqueeze", "expand", "slice", "split", "detach", "alias")


@dataclass(frozen=True)
class Products:
    """Matrix products that are timed in the same rounds as the step, because a busy machine slows down both."""

    flop: int
    run: Callable[[], None]
    rate: str  # the name of their rate; on a CPU, a bf16 step is compared with fp32 products too


def products(device: torch.device) -> Products:
    """Returns large matrix products, in bf16 on a GPU and in fp32 on a CPU."""
    cuda = device.type == "cuda"
    side, count, dtype = (8192, 8, torch.bfloat16) if cuda else (1536, 4, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def run() -> None:
        for _ in range(count):
            torch.mm(a, b)

    return Products(2 * side**3 * count, run, f"{'bf16' if cuda else 'fp32'} matmul rate")


def matmul_rate(device: torch.device) -> float:
    """Returns the FLOP/s of these products, the best of several measurements."""
    large = products(device)
    return large.flop / _best(large.run, device)


def memory_rate(device: torch.device) -> float:
    """Returns the bytes/s that a copy reads and writes, the best of several measurements."""
    values = torch.empty(1 << (28 if device.type == "cuda" else 26), device=device)
    into = torch.empty_like(values)
    return 2 * values.nbytes / _best(lambda: into.copy_(values), device)


def _best(work: Any, device: torch.device, rounds: int = 12) -> float:
    times = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[2:])


class _NoAttention(TorchFunctionMode):
    """A mode in which attention only returns an empty tensor: its kernels write no scores to memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class _Bytes(TorchDispatchMode):
    """A mode that adds up the bytes that ops other than products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not name.startswith(_PRODUCTS) and name not in _VIEWS:
            tensors = [value for value in (*args, *(out if isinstance(out, tuple | list) else (out,)))]
            self.total += sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))
        return out


def elementwise_bytes(unet: Any, low: int) -> int:
    """Returns the bytes that one sample's forward moves outside of its products, op by op. `low`: bytes per number."""
    with torch.device("meta"), torch.no_grad():
        denoiser = Architecture.of(unet)
        shadow = denoiser.build()
        with _NoAttention(), _Bytes() as counted:
            blank_forward(denoiser, shadow)
    return counted.total * low // 4
