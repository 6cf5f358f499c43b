"""The floor a step is measured against: its FLOP over this device's measured matmul rate, its bytes over its memory's.

Bytes are those of everything that is not a matrix product, convolution or attention, run op by op: what fusion can
take away at most.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from randcond.model_zoo.denoiser.condition import blank_forward
from randcond.model_zoo.denoiser.configuration import plain_config

_PRODUCTS = ("convolution", "addmm", "mm", "bmm", "baddbmm", "_scaled_dot_product")
_VIEWS = ("view", "reshape", "permute", "transpose", "t", "unsqueeze", "expand", "slice", "split", "detach", "alias")


@dataclass(frozen=True)
class Products:
    """Matrix products to time in the same rounds as what they are the floor of: a busy machine slows both."""

    flop: int
    run: Callable[[], None]
    rate: str  # what their rate is called: a bf16 step on a CPU is measured against fp32 products too


def products(device: torch.device) -> Products:
    """Large ones, in bf16 on a GPU and in fp32 on a CPU."""
    cuda = device.type == "cuda"
    side, count, dtype = (8192, 8, torch.bfloat16) if cuda else (1536, 4, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def run() -> None:
        for _ in range(count):
            torch.mm(a, b)

    return Products(2 * side**3 * count, run, f"{'bf16' if cuda else 'fp32'} matmul rate")


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of these products, the best of several."""
    large = products(device)
    return large.flop / _best(large.run, device)


def memory_rate(device: torch.device) -> float:
    """Bytes/s of a copy, read and written, the best of several."""
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
    """Attention gives a tensor of its shape and does nothing: its kernels keep their scores to themselves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class _Bytes(TorchDispatchMode):
    """Adds up what ops other than products read and write."""

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
    """Bytes that one sample's forward moves outside of its products, op by op; `low`: bytes of a number."""
    with torch.device("meta"), torch.no_grad():
        shadow = type(unet).from_config(plain_config(unet.config))
        with _NoAttention(), _Bytes() as counted:
            blank_forward(shadow)
    return counted.total * low // 4
