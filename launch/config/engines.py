"""What each engine does with the training state, and how batch and state are divided over the ranks.

The formulas for an engine's memory and traffic are in model_zoo/cost/memory.py and launch/planning/step_time.py.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from randcond.launch.errors import UserError

Compile = Literal["none", "blocks", "whole"]  # torch.compile: the repeated transformer blocks, or one whole graph
AUTO = "auto"  # on where it works and was measured to be faster
EngineCompile = Literal["none", "blocks", "whole", "auto"]
Switch = bool | Literal["auto"]
# Where EMA weights are. YAML reads a plain `off` as false.
EmaPlace = Annotated[Literal["device", "cpu", "off"], BeforeValidator(lambda value: "off" if value is False else value)]


class EngineKind(StrEnum):
    """The engine that `engine.kind`, `engine.zero_stage` and `engine.sharding` select together, as plans name it."""

    ZERO_0 = "zero-0"
    ZERO_1 = "zero-1"
    ZERO_2 = "zero-2"
    ZERO_3 = "zero-3"
    FSDP_FULL = "fsdp-full"
    FSDP_GRAD_OP = "fsdp-grad_op"
    FSDP_HYBRID = "fsdp-hybrid"


@dataclass(frozen=True)
class EngineSpec:
    """What an engine can do."""

    settings: dict[str, Any] = field(compare=False)  # the keys of the section `engine` that select it
    gathers_blocks: bool = False  # the weights are sharded, and gathered block by block during the passes
    keeps_gathered: bool = False  # gathered weights are kept from the forward pass until the backward pass
    in_groups: bool = False  # the state is sharded over a group of ranks, and the groups are replicas
    replicated: bool = False  # every rank holds the whole state
    accumulates_in_fp32: bool = True  # even if it computes in bf16
    skips_steps: bool = True  # can skip a step whose gradient is NaN or infinite


ENGINES: dict[EngineKind, EngineSpec] = {
    EngineKind.ZERO_0: EngineSpec(
        {"kind": "deepspeed", "zero_stage": 0}, replicated=True, accumulates_in_fp32=False, skips_steps=False
    ),
    EngineKind.ZERO_1: EngineSpec({"kind": "deepspeed", "zero_stage": 1}),
    EngineKind.ZERO_2: EngineSpec({"kind": "deepspeed", "zero_stage": 2}),
    EngineKind.ZERO_3: EngineSpec({"kind": "deepspeed", "zero_stage": 3}, gathers_blocks=True),
    EngineKind.FSDP_FULL: EngineSpec({"kind": "fsdp", "sharding": "full"}, gathers_blocks=True),
    EngineKind.FSDP_GRAD_OP: EngineSpec(
        {"kind": "fsdp", "sharding": "grad_op"}, gathers_blocks=True, keeps_gathered=True
    ),
    EngineKind.FSDP_HYBRID: EngineSpec({"kind": "fsdp", "sharding": "hybrid"}, gathers_blocks=True, in_groups=True),
}


def engine_kind(kind: str, zero_stage: int, sharding: str) -> EngineKind:
    """Returns the kind that the three keys of the section `engine` select."""
    keys = {"kind": kind, "zero_stage": zero_stage, "sharding": sharding}
    return next(engine for engine, spec in ENGINES.items() if spec.settings.items() <= keys.items())


def batch_shape(global_batch: int, ranks: int, micro_batch: int | None) -> tuple[int, int]:
    """Returns (micro-batch, accumulation steps), whose product over all ranks is the global batch.

    `micro_batch`: the setting `engine.micro_batch`. Raises UserError with the arithmetic if the batch can't be divided.
    """
    if global_batch % ranks:
        raise UserError(
            f"train.global_batch: {global_batch} does not divide over {ranks} ranks "
            f"({global_batch} / {ranks} = {global_batch / ranks:.2f}); "
            f"take {global_batch // ranks * ranks or ranks} or {(global_batch // ranks + 1) * ranks}"
        )
    per_rank = global_batch // ranks
    micro = micro_batch or per_rank
    if per_rank % micro:
        raise UserError(
            f"engine.micro_batch: {micro} does not divide the {per_rank} samples of each rank "
            f"(train.global_batch {global_batch} / {ranks} ranks)"
        )
    return micro, per_rank // micro


def shard_group(kind: EngineKind, group: int | None, ranks: int, ranks_of_host: int) -> int:
    """Returns the number of ranks that share one replica of the training state.

    `group`: the setting `engine.shard_group`. Raises UserError if the groups don't divide the world size `ranks`.
    """
    if not ENGINES[kind].in_groups:
        return ranks
    size = group or ranks_of_host
    if ranks % size:
        origin = "" if group else f" (the ranks of one host: {ranks_of_host})"
        raise UserError(f"engine.shard_group: {size}{origin} does not divide the {ranks} ranks")
    return size
