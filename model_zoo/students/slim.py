"""SLIM's wavelet gating ("Diffusion Probabilistic Model Made Slim", arXiv 2211.17106): gated Haar sub-bands.

`SlimUNet2DConditionModel` is diffusers' U-Net with gated Haar transforms as down- and upsamplers. It is the only
student class that diffusers alone cannot load. `model_zoo.export.load_unet` loads it.
"""

import functools
import re
import sys
from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from randcond.launch.errors import UserError
from randcond.model_zoo.students.unet_rule import UNetRule


def slim_rule(rule: UNetRule) -> UNetRule:
    """Returns a block rule with wavelet gating. Down- and upsamplers start from random weights."""

    def teacher_name(name: str) -> str | None:
        assert rule.teacher_name is not None
        return None if re.search(r"\.(down|up)samplers\.", name) else rule.teacher_name(name)

    summary = f"{rule.summary}; wavelet gating instead of down- and upsamplers"
    return replace(rule, summary=summary, teacher_name=teacher_name, model=SlimUNet2DConditionModel)


BANDS = 4  # LL, LH, HL, HH


def haar_dwt(x: Tensor) -> Tensor:
    """Applies the orthonormal 2-D Haar transform: [B, C, H, W] -> [B, 4, C, H/2, W/2], bands LL, LH, HL, HH.

    Raises UserError if H or W is odd.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise UserError(f"wavelet downsampler: height and width must be even, got {tuple(x.shape[-2:])}")
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]  # pixels of each 2x2 square: a, b in its top row
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]  # c, d in its bottom row
    return torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=1) / 2


def haar_idwt(bands: Tensor) -> Tensor:
    """Inverts `haar_dwt`: [B, 4, C, h, w] -> [B, C, 2h, 2w]."""
    ll, lh, hl, hh = bands.unbind(dim=1)
    above = torch.stack([ll + lh + hl + hh, ll - lh + hl - hh], dim=-1).flatten(-2)  # [B, C, h, 2w]
    below = torch.stack([ll + lh - hl - hh, ll - lh - hl + hh], dim=-1).flatten(-2)
    return torch.stack([above, below], dim=-2).flatten(-3, -2) / 2


class BandGate(nn.Module):
    """g = sigmoid(FFN(avgpool(X))): one soft gate per sample and sub-band."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(BANDS, channels // 4)
        self.ffn = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, BANDS))

    def forward(self, x: Tensor) -> Tensor:
        """Returns gates [B, 4, 1, 1, 1] in (0, 1) for x [B, C, H, W]."""
        return self.ffn(x.mean(dim=(2, 3))).sigmoid()[:, :, None, None, None]


class WaveletDownsample(nn.Module):
    """X' = sum_i g_i X_i over the Haar sub-bands of X: [B, C, H, W] -> [B, C, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = BandGate(channels)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Maps [B, C, H, W] to [B, C, H/2, W/2]. Takes the arguments of diffusers' Downsample2D."""
        return (self.gate(x) * haar_dwt(x)).sum(dim=1)


class WaveletUpsample(nn.Module):
    """Splits channels into four sub-bands, gates and inverse-transforms them: [B, C, h, w] -> [B, C, 2h, 2w].

    The inverse transform leaves C/4 channels. A 1x1 convolution, not part of SLIM, restores the C channels that the
    next block expects.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = BandGate(channels)
        self.widen = nn.Conv2d(channels // BANDS, channels, kernel_size=1)

    def forward(self, x: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """Maps [B, C, h, w] to [B, C, 2h, 2w]. Takes the arguments of diffusers' Upsample2D."""
        return self.widen(haar_idwt(self.gate(x) * x.unflatten(1, (BANDS, -1))))


class SlimUNet2DConditionModel(UNet2DConditionModel):
    """diffusers' U-Net with SLIM's wavelet gating instead of its down- and upsamplers. Takes the same configuration."""

    # Exported folders name this module, under which diffusers looks the class up. Older ones have it too.
    __module__ = "randcond.model_zoo.slim"

    @functools.wraps(UNet2DConditionModel.__init__)  # type: ignore[misc]  # diffusers inspects the signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in [*self.down_blocks, *self.up_blocks]:
            if getattr(block, "downsamplers", None) is not None:
                block.downsamplers = nn.ModuleList(WaveletDownsample(s.channels) for s in block.downsamplers)
            if getattr(block, "upsamplers", None) is not None:
                block.upsamplers = nn.ModuleList(WaveletUpsample(s.channels) for s in block.upsamplers)


sys.modules[SlimUNet2DConditionModel.__module__] = sys.modules[__name__]
