"""The interface of the engines. Only this package imports deepspeed or FSDP2.

An engine runs the forward, the backward and the optimizer step of a module on all ranks. It keeps the EMA of the fp32
master weights. It saves and loads its state in pieces by parameter name, independent of the sharding.
"""

import os
import sys

from torch import nn

from randcond.launch.config.sections import Config
from randcond.train.engine.base import STATE_KINDS, Engine

__all__ = ["STATE_KINDS", "Engine", "build_engine", "shard_teacher"]


# DeepSpeed compiles its operators for the torch version of this Python environment. By default, all environments share
# one folder of compiled operators. Two environments would then recompile them at every start, a minute each time.
if os.access(sys.prefix, os.W_OK):
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))


def build_engine(config: Config, module: nn.Module) -> Engine:
    """Wraps the module in the engine that `engine.kind` names."""
    if config.engine.kind == "fsdp":
        from randcond.train.engine.fsdp import FsdpEngine

        return FsdpEngine(config, module)
    from randcond.train.engine.zero import ZeroEngine

    return ZeroEngine(config, module)


def shard_teacher(denoiser: nn.Module) -> None:
    """Shards a frozen denoiser over all ranks (FSDP2). Each block is gathered just before its forward.

    Every rank must take part in every later forward of the denoiser.
    """
    from randcond.train.engine.fsdp import shard_frozen

    shard_frozen(denoiser)
