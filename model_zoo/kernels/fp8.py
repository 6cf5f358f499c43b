"""Runs the frozen teacher's linear layers in fp8: half the bytes and up to twice the speed, with a measured error.

Values are e4m3 with one scale per tensor. The scale of a weight is computed once, that of an input at every call.
Convolutions, norms and attention products stay as they are. fp8 is used only during training, including its sample
grids. Caches and evaluations never use it.
"""

import torch
from torch import Tensor, nn

from randcond.launch.errors import UserError
from randcond.model_zoo.teacher import Teacher

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
MULTIPLE = 16  # fp8 kernels need widths that are multiples of this


class Fp8Linear(nn.Module):
    """Linear layer y = x W^T + b whose matrix product runs in fp8."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize(linear.weight.detach())
        self.register_buffer("weight", weight)  # [out, in], e4m3
        self.register_buffer("scale", scale)  # []
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in] to [..., out], in the dtype of x."""
        rows, scale = quantize(x.reshape(-1, x.shape[-1]))
        # torch.nn.functional.scaled_mm has no CPU kernel. The private function that it calls has one.
        out = torch._scaled_mm(rows, self.weight.t(), scale, self.scale, out_dtype=torch.bfloat16)
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], -1)


def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Converts a tensor of any shape to e4m3. Returns it with the scale [] (fp32): values = quantized * scale."""
    scale = values.abs().amax().float().clamp(min=1e-12) / LARGEST
    return (values.float() / scale).to(E4M3), scale


def to_fp8(network: nn.Module) -> int:
    """Replaces linear layers of the transformer blocks by fp8 layers, in place, and returns how many.

    Layers whose widths are not multiples of MULTIPLE stay as they are.
    """
    count = 0
    for name, module in list(network.named_modules()):
        if takes_fp8(name, module):
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, Fp8Linear(module))
            count += 1
    return count


def takes_fp8(name: str, module: nn.Module) -> bool:
    """Returns True if `to_fp8` replaces this module of a denoiser."""
    if not isinstance(module, nn.Linear) or "transformer_blocks" not in name:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


@torch.no_grad()
def fp8_teacher(teacher: Teacher) -> str:
    """Converts a teacher's linear layers to fp8 and returns a log line with their number and the resulting error.

    The error is the norm of the difference between the predictions before and after, divided by the norm of the
    predictions before. It is measured on noise with the null caption at three timesteps.
    Raises UserError on a GPU without fp8.
    """
    if teacher.device.type == "cuda" and torch.cuda.get_device_capability(teacher.device) < (8, 9):
        raise UserError(
            f"engine.teacher_fp8: {torch.cuda.get_device_name(teacher.device)} does not support fp8 "
            f"(Ada, Hopper and later GPUs do); set it to false"
        )
    before = teacher.probe()
    linear = sum(isinstance(module, nn.Linear) for module in teacher.denoiser.modules())
    count = to_fp8(teacher.denoiser)
    error = (teacher.probe() - before).norm() / before.norm()
    return f"teacher in fp8: {count} of {linear} linear layers, which changes its predictions by {error:.2%}"
