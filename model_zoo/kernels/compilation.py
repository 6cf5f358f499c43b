"""torch.compile of what trains (U-Nets, text encoders) and of pipelines that draw, with static shapes.

Compiled are the repeated blocks (one compilation for all of a kind) or the whole as one graph; after feature taps are
on: hooks that come later would be ignored.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

from randcond.model_zoo.kernels.truncated_libraries import remove_truncated_libraries


def compile_network(network: Any, how: str, graphs: bool = False) -> None:
    """how: "none", "blocks" (the transformer blocks; minutes less to wait) or "whole" (one graph, nothing around it).

    `graphs`: the whole is replayed as one CUDA graph; what it returned is overwritten by its next call.
    """
    # All modules share the code that is compiled, Module._call_impl, and each of them and of their shapes counts.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # A block with a feature tap inside shares its code with those without: torch leaves that unguarded unless told.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    if how != "none":
        _mend_inductors_cache()
    if how == "blocks":
        network.compile_repeated_blocks()
    elif how == "whole":
        network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if graphs else None)


@cache
def _mend_inductors_cache() -> None:
    remove_truncated_libraries()  # once per process: a start may compile several networks


def compile_text(encoders: Iterable[Any]) -> None:
    """Text encoders as one graph where they are one: what is left between graphs runs as it is."""
    for encoder in encoders:
        encoder.compile(dynamic=False)


def compile_drawing(pipe: Any, how: str) -> None:
    """The same of a pipeline's denoiser; "whole": of its decoder too."""
    compile_network(getattr(pipe, "unet", None) or pipe.transformer, how)
    if how == "whole":
        pipe.vae.decoder.compile(dynamic=False)
