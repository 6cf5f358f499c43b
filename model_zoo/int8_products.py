"""A frozen linear layer that multiplies in 8 bits: both its weights and its inputs are int8.

Tensor cores multiply int8 at twice the rate of bf16 (NVIDIA's from Turing on, so also where there is no fp8). A weight
has one scale per output channel. An input has one scale per row, computed at every call, so a row's result does not
depend on the other rows of its batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 127
MULTIPLE = 8  # CUDA's kernel needs widths that are multiples of this,
FEWEST_ROWS = 17  # and at least so many rows
ROWS_AT_ONCE = 8192  # without compilation, whose intermediate values in 32 bits take several times an output's bytes


class Int8Product(nn.Module):
    """Linear layer y = x W^T + b whose matrix product runs in int8, with sums in int32."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_int8(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # [out, in], int8
        self.register_buffer("scale", scale)  # [out, 1]
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in] to [..., out], in the dtype of x."""
        rows = x.reshape(-1, x.shape[-1])
        parts = [rows] if torch.compiler.is_compiling() else rows.split(ROWS_AT_ONCE)
        return torch.cat([self._product(part) for part in parts]).view(*x.shape[:-1], -1)

    def _product(self, rows: Tensor) -> Tensor:
        """Maps rows [n, in] to [n, out]."""
        scale = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / LARGEST  # [n, 1]
        whole = (rows / scale).round().to(torch.int8)
        missing = max(0, FEWEST_ROWS - len(rows))
        # The function behind it has no public name in torch. Quantisation libraries call this one, too.
        sums = torch._int_mm(functional.pad(whole, (0, 0, 0, missing)), self.weight.t())[: len(rows)]
        out = sums * scale * self.scale.float().t()
        return (out if self.bias is None else out + self.bias.float()).to(rows.dtype)


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a weight [out, in, ...] as int8, and its scales [out, 1, ...]: weight = int8 * scale.

    A scale has the dtype of the weight. It is rounded first, so that its rounding adds no error.
    """
    largest = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True).float()
    scale = torch.where(largest > 0, largest / LARGEST, 1.0).to(weight.dtype)
    return (weight.float() / scale.float()).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def widths_suit(linear: nn.Linear) -> bool:
    """Returns True if CUDA's kernel takes a layer of these widths."""
    return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0
