"""Counts the memory that networks need to draw and to encode, beside their weights, without a device.

A forward pass on fake tensors tells which tensors live at the same time. Attention is assumed to be fused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from randcond.model_zoo.cost.live_bytes import LiveBytes
from randcond.model_zoo.denoiser.architecture import Architecture, once_per_architecture
from randcond.model_zoo.denoiser.forward import blank_forward


@once_per_architecture
def denoiser_peak(denoiser: Architecture, dtype: torch.dtype, tokens: int | None = None) -> int:
    """Returns the bytes per sample that a forward pass of a denoiser holds at its peak, without the weights.

    dtype: of weights and activations. tokens: length of the text; None: the family's.
    """
    return _peak(denoiser.build, lambda network: blank_forward(denoiser, network, 1, tokens, dtype), dtype)


def decoder_peak(vae: Architecture, side: int, dtype: torch.dtype) -> int:
    """Returns the bytes that a VAE holds at its peak to decode one latent [1, C, side, side], without the weights.

    dtype: of weights and activations.
    """
    return _vae_peak(vae, side, dtype, "decode")


def encoder_peak(vae: Architecture, pixels: int, dtype: torch.dtype) -> int:
    """Returns the bytes that a VAE holds at its peak to encode one image [1, 3, pixels, pixels], without the weights.

    dtype: of weights and activations.
    """
    return _vae_peak(vae, pixels, dtype, "encode")


def text_peak(build: Callable[[], Any], tokens: int, dtype: torch.dtype) -> int:
    """Returns the bytes that a text encoder holds at its peak to encode one caption, without the weights.

    build: makes the encoder. tokens: length of the caption. dtype: of weights and activations.
    """

    def run(network: Any) -> None:
        getattr(network, "model", network)(torch.zeros(1, tokens, dtype=torch.long))

    return _peak(build, run, dtype)


@once_per_architecture
def _vae_peak(vae: Architecture, side: int, dtype: torch.dtype, method: str) -> int:
    def run(network: Any) -> None:
        channels = network.config.latent_channels if method == "decode" else network.config.in_channels
        getattr(network, method)(torch.zeros(1, channels, side, side, dtype=dtype))

    return _peak(vae.build, run, dtype)


@torch.no_grad()
def _peak(build: Callable[[], Any], run: Callable[[Any], object], dtype: torch.dtype) -> int:
    """Returns the bytes that `run` holds at its peak, without the weights of the network that `build` returns."""
    with FakeTensorMode():
        torch.set_default_dtype(dtype)  # fake parameters cannot be cast later
        try:
            network = build().eval()
        finally:
            torch.set_default_dtype(torch.float32)
        with LiveBytes([*network.parameters(), *network.buffers()]) as live:
            run(network)
        return live.peak
