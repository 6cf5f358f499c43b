"""Kernels and compilation of a denoiser that draws, and torch.compile of a U-Net that trains, with static shapes.

Compiled are the repeated blocks (one compilation for all of a kind) or the whole as one graph; after feature taps are
on: hooks that come later would be ignored.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from randcond.model_zoo.attention import choose_attention, set_attention


def compile_network(network: Any, how: str, graphs: bool = False) -> None:
    """how: "none", "blocks" (the transformer blocks; minutes less to wait) or "whole" (one graph, nothing around it).

    `graphs`: the whole is replayed as one CUDA graph; what it returned is overwritten by its next call.
    """
    if how == "blocks":
        network.compile_repeated_blocks()
    elif how == "whole":
        network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if graphs else None)


def speed_up_drawing(pipe: Any, batch: int, attention: str, compile: str, channels_last: bool) -> None:
    """Sets a pipeline that draws `batch` captions at once to the kernels of the experiment's `engine.kernels`.

    Attention backends are a U-Net's; one that fails its self-test there leaves SDPA, as in training.
    """
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    if attention != "sdpa" and isinstance(denoiser, UNet2DConditionModel):
        asked = denoiser, attention, denoiser.dtype, denoiser.device, 2 * batch  # guidance: two calls in one
        set_attention(denoiser, choose_attention(*asked, trains=False))
    if channels_last:
        denoiser.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    compile_network(denoiser, compile)
    if compile == "whole":
        pipe.vae.decoder.compile(dynamic=False)
