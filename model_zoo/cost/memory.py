"""What a GPU holds while a student trains: the state's share under each engine, and what a forward keeps.

From configurations and parameter shapes alone. The engines' shares are what DeepSpeed 0.19 and FSDP2 were measured to
allocate (tests/unit/launch/test_planner.py holds them to it).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from randcond.model_zoo.denoiser.condition import blank_forward
from randcond.model_zoo.denoiser.configuration import UNetConfig, once_per_configuration
from randcond.model_zoo.students.features import feature_shapes, projectors
from randcond.model_zoo.students.registry import find_rule, student_config

# Bytes per number of a compared feature, by loss: the teacher's and the student's in fp32, of SLIM's frequency loss the
# half of a complex spectrum and its weights beside (measured; tests/unit/launch/test_planner.py holds them to it).
COMPARED_BYTES = {"feature": 8, "spatial": 8, "frequency": 12.5}
BUCKET = 500_000_000  # DeepSpeed: gradients that are reduced at once
PERSISTENT = 100_000  # DeepSpeed ZeRO-3: parameters up to this size stay whole on every rank
LIVE = 1_000_000_000  # DeepSpeed ZeRO-3: gathered parameters that it keeps at once


@dataclass(frozen=True)
class Sharding:
    """How a training state lies over the ranks."""

    kind: str  # zero-0 ... zero-3, fsdp-full, fsdp-grad_op, fsdp-hybrid
    ranks: int = 1
    group: int | None = None  # fsdp-hybrid: ranks that hold one copy together
    compute_bytes: int = 2  # of a computing parameter: 2 bf16, 4 fp32
    accumulates: bool = False  # several micro-batches per step


@dataclass(frozen=True)
class StateMemory:
    """Bytes per GPU of the training state, largest between a step's last backward and its update."""

    weights: int  # the student's, as they compute, and what is kept whole of them
    gradients: int
    optimizer: int  # fp32 master weights where they are apart, AdamW's two moments, EMA
    buffers: int  # allocated at the start for good
    transient: int  # gathered weights and reduction buckets, there for a part of a step

    @property
    def resident(self) -> int:
        """All but the transient ones."""
        return self.weights + self.gradients + self.optimizer + self.buffers


def state_memory(shapes: Sequence[tuple[int, ...]], blocks: Sequence[int], how: Sharding) -> StateMemory:
    """The state's share of the first rank (no rank has more).

    shapes: of the trained parameters; blocks: numbers of parameters that FSDP gathers at once.
    """
    numels = [math.prod(shape) for shape in shapes]
    total, low = sum(numels), how.compute_bytes
    bucket = 4 * min(BUCKET, total)  # sums over the ranks are in fp32
    if how.kind.startswith("fsdp"):
        shards = (how.group or how.ranks) if how.kind == "fsdp-hybrid" else how.ranks
        mine = sum(-(-shape[0] // shards) * math.prod(shape[1:]) for shape in shapes)  # whole rows
        gathered = sum(blocks) if how.kind == "fsdp-grad_op" else sum(sorted(blocks)[-2:])  # one ahead
        # a group of one gathers all the same: the computing copies are made then
        return StateMemory(0, 4 * mine, 16 * mine, 0, (low + 4) * gathered)
    if how.kind == "zero-3":
        mine = sum(-(-numel // how.ranks) for numel in numels)
        whole = persistent(shapes)
        return StateMemory(low * (mine + whole), 4 * mine, 16 * mine, bucket, low * min(LIVE, total))
    mine = -(-total // how.ranks)
    if how.kind == "zero-2":
        return StateMemory(low * total, 4 * mine, 16 * mine, 0, 2 * bucket)
    if how.kind == "zero-1":
        if low == 2:  # the gradients as they come, and their fp32 accumulators, which are reduced in place
            return StateMemory(low * total, (low + 4) * total, 16 * mine, 0, 0)
        return StateMemory(low * total, 4 * (total if how.accumulates else mine), 16 * mine, 0, bucket)
    assert how.kind == "zero-0" and low == 4, how
    return StateMemory(4 * total, 4 * total, 12 * total, 0, bucket)


def persistent(shapes: Sequence[tuple[int, ...]]) -> int:
    """Numbers that ZeRO-3 keeps whole on every rank."""
    return sum(numel for numel in map(math.prod, shapes) if numel <= PERSISTENT)


def trained_shapes(rule_name: str, teacher: UNetConfig) -> tuple[list[tuple[int, ...]], list[int]]:
    """Shapes of a student's and its projectors' parameters, and the sizes of the blocks that FSDP gathers at once.

    Raises UserError when the rule does not apply to the teacher.
    """
    rule, config = find_rule(rule_name), student_config(rule_name, teacher)
    with torch.device("meta"):
        unet: Any = rule.model.from_config(config)
        extra = projectors((rule.model, config), teacher, rule)
    shapes = [tuple(p.shape) for network in (unet, *extra) for p in network.parameters()]
    blocks = block_sizes(unet)
    rest = sum(math.prod(shape) for shape in shapes) - sum(blocks)
    return shapes, [*blocks, rest]


def unet_blocks(config: UNetConfig) -> list[int]:
    """The same of a configuration."""
    with torch.device("meta"):
        return block_sizes(UNet2DConditionModel.from_config(config))


def block_sizes(unet: Any) -> list[int]:
    """Numbers of parameters of a U-Net's down, mid and up blocks."""
    parts = [part for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) if part is not None]
    return [sum(p.numel() for p in part.parameters()) for part in parts]


def activations_per_sample(
    rule_name: str,
    teacher: UNetConfig,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
    compared: float = COMPARED_BYTES["feature"],
) -> int:
    """Bytes per sample of a micro-batch that the student's forward and the feature losses keep for the backward.

    `compared`: of the losses, per number of a tapped feature.
    """
    rule = find_rule(rule_name)
    kept = saved_activations(
        rule.model, student_config(rule_name, teacher), 1, dtype=dtype, checkpointing=checkpointing
    )
    tapped = feature_shapes(UNet2DConditionModel, teacher, [theirs for theirs, _ in rule.pairs(teacher)])
    return kept + round(compared * sum(math.prod(shape) for shape in tapped))


@once_per_configuration
def saved_activations(
    model: type[UNet2DConditionModel],
    config: Mapping[str, Any],
    batch: int,
    tokens: int = 77,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
) -> int:
    """Bytes that a forward keeps for its backward, parameters excluded, with a fused attention.

    With checkpointing: the inputs of the parts that are run again, and the largest of these parts when it is.
    """
    everything, largest = _saved(model, config, batch, tokens, dtype, checkpointing=False)
    if not checkpointing:
        return everything
    inputs, _ = _saved(model, config, batch, tokens, dtype, checkpointing=True)
    return inputs + largest


def _saved(
    model: type[UNet2DConditionModel],
    config: Mapping[str, Any],
    batch: int,
    tokens: int,
    dtype: torch.dtype,
    checkpointing: bool,
) -> tuple[int, int]:
    """Bytes that one forward saves, and the most that one of the parts that checkpointing runs again does."""
    saved: dict[int, Any] = {}  # storage -> itself: held, so that no number is given twice
    before: list[int] = []  # how many were saved when the part that is running began
    parts = [0]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    def begin(module: nn.Module, inputs: object) -> None:
        before.append(len(saved))

    def end(module: nn.Module, inputs: object, output: object) -> None:
        new = list(saved.items())[before.pop() :]
        parts.append(sum(storage.nbytes() for key, storage in new if key not in own))

    with FakeTensorMode():
        torch.set_default_dtype(dtype)  # fake parameters cannot be cast later
        try:
            unet = model.from_config(config)
        finally:
            torch.set_default_dtype(torch.float32)
        if checkpointing:
            unet.train().enable_gradient_checkpointing()
        own = {p.untyped_storage()._cdata for p in unet.parameters()}
        for part in unet.modules():
            if isinstance(part, ResnetBlock2D | BasicTransformerBlock):
                part.register_forward_pre_hook(begin)
                part.register_forward_hook(end)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = blank_forward(unet, batch, tokens, dtype)
        total = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    assert out.shape[0] == batch  # the graph, and with it every saved tensor, has lived until here
    return total, max(parts)
