"""Counts the parameters, MACs and training FLOP of a network from its configuration, in seconds and without a device.

MACs are those of one call with batch 1 and the family's number of text tokens (CLIP: 77). Convolutions and linear
layers (the paper's convention) are counted separately from the two matrix products of attention. torch's FLOP counter
counts them on meta tensors.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.blank_run import blank_run

_ATTENTION_OPS = {"aten.bmm"}  # the products of scaled dot-product attention on meta tensors
_LAYER_OPS = {"aten.convolution", "aten.addmm", "aten.mm"}


@dataclass(frozen=True)
class DenoiserCost:
    """Size and cost of one denoiser, as plain counts (not in millions)."""

    parameters: int
    macs: int  # of convolutions and linear layers, in one call
    attention_macs: int  # of attention products, in one call

    @property
    def flop(self) -> int:
        """Floating-point operations of one call, two per MAC, including attention."""
        return 2 * (self.macs + self.attention_macs)


def denoiser_cost(denoiser: Architecture, tokens: int | None = None) -> DenoiserCost:
    """Returns the parameters and MACs of a denoiser.

    tokens: length of the text; None: the family's. Raises UserError naming the operations that are neither layers nor
    attention.
    """
    run = blank_run(denoiser, tokens)
    flop = run.flop
    if unknown := flop.keys() - _ATTENTION_OPS - _LAYER_OPS:
        raise UserError(f"cost: unknown operations {sorted(unknown)}; add them to _LAYER_OPS or _ATTENTION_OPS")
    macs, attention = (sum(flop.get(op, 0) for op in ops) // 2 for ops in (_LAYER_OPS, _ATTENTION_OPS))
    return DenoiserCost(run.parameters, macs, attention)


def training_flop(teacher: DenoiserCost, student: DenoiserCost) -> int:
    """Returns the FLOP of distilling one sample: teacher forward pass, student forward and backward passes."""
    return teacher.flop + 3 * student.flop


@torch.no_grad()
def encoder_flop(encoder: nn.Module, tokens: int) -> int:
    """Returns the FLOP of encoding one caption of `tokens` tokens. encoder: of transformers, on the meta device.

    The head of a language model is not counted, because no teacher needs it.
    """
    trunk = getattr(encoder, "model", encoder)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        trunk(input_ids=ids)
    return counter.get_total_flops()


def decoder_cost(vae: Architecture, side: int) -> tuple[int, int]:
    """Returns the number of parameters of a VAE, and the FLOP of decoding one latent [1, C, side, side]."""
    with torch.device("meta"), torch.no_grad():
        network = vae.build()
        with FlopCounterMode(display=False) as counter:
            network.decode(torch.zeros(1, network.config.latent_channels, side, side))
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()
