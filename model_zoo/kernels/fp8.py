"""The frozen teacher's linear layers in fp8: half the bytes and up to twice the rate, at an error that is measured.

Numbers are e4m3 with one scale per tensor: a weight's is taken once, an input's at every call. Convolutions, norms and
attention's own products stay as they are. Only in training (its sample grids too): nothing that is kept is drawn so.
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.condition import denoise
from randcond.model_zoo.teacher import Teacher

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
MULTIPLE = 16  # of the widths that fp8's kernels take


class Fp8Linear(nn.Module):
    """y = x W^T + b, the product taken in fp8."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize(linear.weight.detach())
        self.register_buffer("weight", weight)  # [out, in], e4m3
        self.register_buffer("scale", scale)  # []
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the type of x."""
        rows, scale = quantize(x.reshape(-1, x.shape[-1]))
        # torch.nn.functional.scaled_mm has no kernel on a CPU; this, which it calls, has one everywhere.
        out = torch._scaled_mm(rows, self.weight.t(), scale, self.scale, out_dtype=torch.bfloat16)
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], -1)


def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values as e4m3, and the scale [] (fp32) that brings them back."""
    scale = values.abs().amax().float().clamp(min=1e-12) / LARGEST
    return (values.float() / scale).to(E4M3), scale


def to_fp8(unet: UNet2DConditionModel) -> int:
    """Replaces the linear layers of the transformer blocks; how many. The others' widths fp8's kernels don't take."""
    count = 0
    for name, module in list(unet.named_modules()):
        if takes_fp8(name, module):
            parent, _, own = name.rpartition(".")
            setattr(unet.get_submodule(parent), own, Fp8Linear(module))
            count += 1
    return count


def takes_fp8(name: str, module: nn.Module) -> bool:
    """Whether a module of a U-Net is one that multiplies in fp8."""
    if not isinstance(module, nn.Linear) or "transformer_blocks" not in name:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


@torch.no_grad()
def fp8_teacher(teacher: Teacher) -> str:
    """Puts a teacher's linear layers into fp8; says how many, and how far off its predictions are for it.

    Measured on noise and the empty caption at three timesteps: the difference's norm by the prediction's.
    Raises UserError on a GPU without fp8.
    """
    if teacher.device.type == "cuda" and torch.cuda.get_device_capability(teacher.device) < (8, 9):
        raise UserError(
            f"engine.teacher_fp8: {torch.cuda.get_device_name(teacher.device)} has no fp8 (Ada, Hopper and later do)"
        )
    steps = torch.tensor([teacher.timesteps * tenth // 10 for tenth in (1, 5, 9)], device=teacher.device)
    noised = torch.randn(len(steps), *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    asked = noised.to(teacher.device, teacher.dtype), steps, teacher.encode(teacher.tokenizers([""] * len(steps)))
    before = denoise(teacher.unet, *asked).float()
    linear = sum(isinstance(module, nn.Linear) for module in teacher.unet.modules())
    count = to_fp8(teacher.unet)
    error = (denoise(teacher.unet, *asked).float() - before).norm() / before.norm()
    return f"teacher in fp8: {count} of {linear} linear layers, its predictions differ by {error:.2%}"
