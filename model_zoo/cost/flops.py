"""What a U-Net costs: parameters, MACs, training FLOP; from its configuration alone, on no device, in seconds.

MACs are of one call at batch 1 and 77 caption tokens; convolutions and linear layers (the paper's convention) and the
attention's two matrix products are counted apart, by torch's own FLOP counter on meta tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.condition import blank_forward
from randcond.model_zoo.denoiser.configuration import once_per_configuration

TOKENS = 77
_ATTENTION_OPS = {"aten.bmm"}  # scaled dot products, as they appear on meta tensors
_LAYER_OPS = {"aten.convolution", "aten.addmm", "aten.mm"}


@dataclass(frozen=True)
class UNetCost:
    """One U-Net: numbers, not millions."""

    parameters: int
    macs: int  # convolution and linear layers
    attention_macs: int

    @property
    def flop(self) -> int:
        """Floating-point operations of one call, attention included: two per MAC."""
        return 2 * (self.macs + self.attention_macs)


@once_per_configuration
def unet_cost(model: type[UNet2DConditionModel], config: Mapping[str, Any], tokens: int = TOKENS) -> UNetCost:
    """Parameters and MACs of a U-Net class at a configuration.

    Raises UserError naming an operation that would be counted in neither column.
    """
    with torch.device("meta"), torch.no_grad():
        unet = model.from_config(config)
        with FlopCounterMode(display=False) as counter:
            blank_forward(unet, tokens=tokens)
    flop = {str(op): number for op, number in counter.get_flop_counts()["Global"].items()}
    if unknown := flop.keys() - _ATTENTION_OPS - _LAYER_OPS:
        raise UserError(f"cost: operations {sorted(unknown)} are counted in no column")
    macs, attention = (sum(flop.get(op, 0) for op in ops) // 2 for ops in (_LAYER_OPS, _ATTENTION_OPS))
    return UNetCost(sum(p.numel() for p in unet.parameters()), macs, attention)


def training_flop(teacher: UNetCost, student: UNetCost) -> int:
    """Floating-point operations of distilling one sample: teacher forward, student forward and backward."""
    return teacher.flop + 3 * student.flop


def decoder_cost(vae: dict[str, Any], side: int) -> tuple[int, int]:
    """(parameters of a VAE, floating-point operations of decoding one latent of `side` x `side`)."""
    with torch.device("meta"), torch.no_grad():
        network: Any = AutoencoderKL.from_config(vae)
        with FlopCounterMode(display=False) as counter:
            network.decode(torch.zeros(1, network.config.latent_channels, side, side))
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()


def text_parameters(config: dict[str, Any]) -> int:
    """Parameters of a CLIP text encoder, its projection left out."""
    with torch.device("meta"):
        return sum(p.numel() for p in CLIPTextModel(CLIPTextConfig(**config)).parameters())
