"""The engines' seam: the only package that imports deepspeed (and, in time, FSDP2).

An engine runs the wrapped module's forward, backward and optimizer step over all ranks, keeps the EMA on the fp32
master weights, and gives and takes its state as full fp32 tensors by parameter name, whatever the sharding.
"""

import os
import sys
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from randcond.launch.config import Config
from randcond.model_zoo.condition import Condition

# DeepSpeed's operators are compiled against this environment's torch. In the folder that torch shares between
# environments, two of them would rebuild each other's operator at every start, a minute each time.
if os.access(sys.prefix, os.W_OK):
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))

STATE_KINDS = ("weights", "ema", "exp_avg", "exp_avg_sq")


class Engine(Protocol):
    """What the loop needs of an engine."""

    rank: int
    ranks: int
    device: torch.device
    dtype: torch.dtype

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        """The wrapped module's forward."""

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch's loss."""

    def step(self, lr: float, ema_decay: float) -> Tensor | float:
        """Applies the gradients once the last micro-batch of the step is in; returns their norm before clipping."""

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on all of them."""

    def broadcast(self, value: Any) -> Any:
        """The first rank's value (plain data), on all ranks."""

    def gather(self, kind: str) -> dict[str, Tensor]:
        """One of STATE_KINDS as full fp32 CPU tensors by parameter name; every rank must call it."""

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        """Takes back what `gather` gave for every kind, after `step` optimizer steps."""

    def barrier(self) -> None:
        """Waits for all ranks."""

    def close(self) -> None:
        """Leaves the process group."""


def batch_shape(global_batch: int, ranks: int, micro_batch: int | None) -> tuple[int, int]:
    """(micro-batch, accumulation steps) that make the global batch exactly; raises ValueError with the arithmetic."""
    if global_batch % ranks:
        raise ValueError(
            f"train.global_batch: {global_batch} does not divide over {ranks} ranks "
            f"({global_batch} / {ranks} = {global_batch / ranks:.2f}); "
            f"take {global_batch // ranks * ranks or ranks} or {(global_batch // ranks + 1) * ranks}"
        )
    per_rank = global_batch // ranks
    micro = micro_batch or per_rank
    if per_rank % micro:
        raise ValueError(
            f"engine.micro_batch: {micro} does not divide the {per_rank} samples of each rank "
            f"(train.global_batch {global_batch} / {ranks} ranks)"
        )
    return micro, per_rank // micro


def build_engine(config: Config, module: nn.Module) -> Engine:
    """Wraps the module in the engine the experiment names."""
    from randcond.train.engine.zero import ZeroEngine

    return ZeroEngine(config, module)
