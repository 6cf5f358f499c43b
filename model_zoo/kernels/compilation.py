"""Compiles denoisers, text encoders and sampling pipelines with torch.compile, for static shapes.

Either the repeated blocks are compiled, once per kind of block, or the whole network is compiled as one graph.
Attach feature taps before compiling. torch.compile ignores hooks that are added later.
"""

import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from randcond.model_zoo.families.registry import family_of
from randcond.model_zoo.kernels.library_path import quote_library_path
from randcond.model_zoo.kernels.truncated_libraries import remove_truncated_libraries


def compile_network(network: Any, how: str, graphs: bool = False) -> None:
    """Compiles a network in place.

    how: "none", "blocks" (the transformer blocks only, which compiles minutes faster) or "whole" (one graph).
    graphs: with "whole", replay the network as one CUDA graph. Each call then overwrites the output of the last one.
    """
    # All modules share the compiled code of Module._call_impl, and every module and shape counts as a recompilation.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # Blocks with and without a feature tap share code. By default, torch does not check for hooks before reusing it.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    if how != "none":
        _prepare()
    if how == "blocks":
        _compile_blocks(network)
    elif how == "whole":
        network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if graphs else None)


def _compile_blocks(network: Any) -> None:
    """Compiles the transformer blocks in place. Some classes don't name theirs to diffusers."""
    if getattr(network, "_repeated_blocks", None):
        network.compile_repeated_blocks()
        return
    for block in family_of(type(network)).blocks(network):
        block.compile()


@cache  # a process may compile several networks
def _prepare() -> None:
    keep_compiled_code()
    remove_truncated_libraries()
    quote_library_path()


def keep_compiled_code() -> None:
    """Makes Inductor keep compiled code in this Python environment, where later starts and other hosts find it.

    Its own default is a temporary folder. Many clusters empty that after every job, and each host has its own.
    `TORCHINDUCTOR_CACHE_DIR` names another folder. An environment that this user can't write stays as it is.
    """
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(sys.prefix, "inductor")))


def compile_text(encoders: Iterable[Any]) -> None:
    """Compiles text encoders in place. Code that causes graph breaks runs uncompiled."""
    _prepare()
    for encoder in encoders:
        encoder.compile(dynamic=False)


def compile_drawing(pipe: Any, how: str) -> None:
    """Compiles a pipeline's denoiser in place, and with "whole" the VAE's decoder too.

    how: "none", "blocks" or "whole", as in `compile_network`.
    """
    compile_network(getattr(pipe, "unet", None) or pipe.transformer, how)
    if how == "whole":
        pipe.vae.decoder.compile(dynamic=False)
