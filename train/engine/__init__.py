"""The engines' seam: the only package that imports deepspeed or FSDP2.

An engine runs the wrapped module's forward, backward and optimizer step over all ranks, keeps the EMA on the fp32
master weights, and gives and takes its state in pieces by parameter name, whatever the sharding.
"""

import os
import sys

from diffusers import UNet2DConditionModel
from torch import nn

from randcond.launch.config.sections import Config
from randcond.train.engine.base import STATE_KINDS, Engine

__all__ = ["STATE_KINDS", "Engine", "build_engine", "shard_teacher"]


# DeepSpeed's operators are compiled against this environment's torch. In the folder that torch shares between
# environments, two of them would rebuild each other's operator at every start, a minute each time.
if os.access(sys.prefix, os.W_OK):
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))


def build_engine(config: Config, module: nn.Module) -> Engine:
    """Wraps the module in the engine the experiment names."""
    if config.engine.kind == "fsdp":
        from randcond.train.engine.fsdp import FsdpEngine

        return FsdpEngine(config, module)
    from randcond.train.engine.zero import ZeroEngine

    return ZeroEngine(config, module)


def shard_teacher(unet: UNet2DConditionModel) -> None:
    """Shards a frozen U-Net over all ranks (FSDP2): each block is gathered when its forward comes to it.

    From then on every forward of it must be called by all ranks.
    """
    from randcond.train.engine.fsdp import shard_frozen

    shard_frozen(unet)
