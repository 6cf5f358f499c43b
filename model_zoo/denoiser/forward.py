"""Calls a denoiser, whatever its family, and runs it on zeros."""

from typing import Any

import torch
from torch import Tensor, nn

from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.families.base.family import Condition, Family
from randcond.model_zoo.families.registry import family_of


def denoise(network: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """Returns the denoiser's prediction [B, C, h, w], whatever it predicts.

    noised: x_t [B, C, h, w]. timesteps: t [B]. condition: as its family encodes it.
    """
    return family_of(type(network)).denoise(network, noised, timesteps, condition)


def cast(family: Family, condition: Condition, dtype: torch.dtype) -> Condition:
    """Converts a condition to a network's compute dtype, but for the inputs that must stay exact."""
    return {name: value if name in family.exact else value.to(dtype) for name, value in condition.items()}


def blank_forward(
    denoiser: Architecture, network: Any, batch: int = 1, tokens: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Runs a forward pass on zeros and returns the prediction [B, C, h, w].

    Used with meta or fake tensors to find out the shapes, operations or saved tensors of a forward pass.
    network: of the architecture. batch: B. tokens: length of the text; None: the architecture's.
    """
    family = denoiser.family
    noised = torch.zeros(batch, *denoiser.latent_shape, dtype=dtype)
    condition = family.blank_condition(denoiser.config, batch, tokens or denoiser.tokens or family.tokens, dtype)
    return denoise(network, noised, torch.zeros(batch), condition)
