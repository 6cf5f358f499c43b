"""Predicts the GPU memory of training a student: the training state under each engine, and the activations.

The predictions need only configurations and parameter shapes. The formulas for the training state reproduce what
DeepSpeed 0.19 and FSDP2 were measured to allocate (checked by tests/unit/launch/test_planner.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from randcond.launch.config.engines import ENGINES, EngineKind
from randcond.model_zoo.denoiser.architecture import Architecture, once_per_architecture
from randcond.model_zoo.denoiser.forward import blank_forward
from randcond.model_zoo.students.features import feature_shapes, projectors
from randcond.model_zoo.students.rule import Student

# Bytes that a loss keeps per element of a tapped feature, by the student's precision. The losses compare in fp32: a
# student in fp32 has its features in its activations already, one in bf16 is copied. SLIM's frequency loss keeps half
# of a complex spectrum and its weights instead. The numbers are measured (tests/unit/launch/test_planner.py).
COMPARED_BYTES = {
    "bf16": {"feature": 8, "spatial": 8, "frequency": 12.5},
    "fp32": {"feature": 4, "spatial": 4, "frequency": 12.5},
}
MOMENTS, EMA = 8, 4  # bytes per parameter: AdamW's two moments, the EMA weights
MOMENTS_IN_8_BITS = 2 * (1 + 4 / 256)  # two codes, and an fp32 scale for each 256 of them
BUCKET = 500_000_000  # DeepSpeed: elements of gradients that are reduced at once
PERSISTENT = 100_000  # DeepSpeed ZeRO-3: tensors with up to this many elements are not sharded
LIVE = 1_000_000_000  # DeepSpeed ZeRO-3: gathered parameters that a rank keeps at once


@dataclass(frozen=True)
class Sharding:
    """How the training state is sharded over the ranks."""

    kind: EngineKind
    ranks: int = 1  # world size
    group: int | None = None  # number of ranks that share one replica; None: all
    compute_bytes: int = 2  # bytes per parameter in the compute dtype: 2 for bf16, 4 for fp32
    accumulates: bool = False  # True with gradient accumulation
    moments: float = MOMENTS  # bytes per parameter
    ema: int = EMA  # bytes per parameter on the device


@dataclass(frozen=True)
class StateMemory:
    """Bytes per GPU of the training state at its peak, between a step's last backward pass and its update."""

    weights: int  # the student's weights in the compute dtype, including those that are not sharded
    gradients: int
    optimizer: int  # AdamW's two moments, EMA weights on the device, and separate fp32 master weights if there are any
    buffers: int  # allocated once, at the start
    transient: int  # gathered weights and reduction buckets, allocated during a part of the step

    @property
    def resident(self) -> int:
        """Sum of all parts except the transient ones."""
        return self.weights + self.gradients + self.optimizer + self.buffers


def state_memory(shapes: Sequence[tuple[int, ...]], blocks: Sequence[int], sharding: Sharding) -> StateMemory:
    """Returns the memory of the training state on the first rank. No rank has more.

    shapes: shapes of the trained parameters.
    blocks: numbers of parameters in the blocks that FSDP gathers one at a time.
    """
    numels = [math.prod(shape) for shape in shapes]
    total, width = sum(numels), sharding.compute_bytes
    averages = sharding.moments + sharding.ema
    held = 4 + averages  # bytes of a rank's share of the optimizer, with fp32 master weights
    bucket = 4 * min(BUCKET, total)  # reductions over the ranks are in fp32
    if sharding.kind in (EngineKind.FSDP_FULL, EngineKind.FSDP_GRAD_OP, EngineKind.FSDP_HYBRID):
        shards = sharding.group or sharding.ranks
        own = sum(-(-shape[0] // shards) * math.prod(shape[1:]) for shape in shapes)  # FSDP shards whole rows
        # FSDP gathers one block ahead. A group of one gathers too, because that creates the compute-dtype copies.
        gathered = sum(blocks) if ENGINES[sharding.kind].keeps_gathered else sum(sorted(blocks)[-2:])
        return StateMemory(0, 4 * own, round(held * own), 0, (width + 4) * gathered)
    if sharding.kind == EngineKind.ZERO_3:
        own = sum(-(-numel // sharding.ranks) for numel in numels)
        weights, gathered = width * (own + persistent(shapes)), width * min(LIVE, total)
        return StateMemory(weights, 4 * own, round(held * own), bucket, gathered)
    own = -(-total // sharding.ranks)
    if sharding.kind == EngineKind.ZERO_2:
        return StateMemory(width * total, 4 * own, round(held * own), 0, 2 * bucket)
    if sharding.kind == EngineKind.ZERO_1:
        if width == 2:  # bf16 gradients, and their fp32 accumulators, which are reduced in place
            return StateMemory(width * total, (width + 4) * total, round(held * own), 0, 0)
        gradients = 4 * (total if sharding.accumulates else own)
        return StateMemory(width * total, gradients, round(held * own), 0, bucket)
    assert ENGINES[sharding.kind].replicated and width == 4, sharding
    return StateMemory(4 * total, 4 * total, round(averages * total), 0, bucket)


def persistent(shapes: Sequence[tuple[int, ...]]) -> int:
    """Returns the number of parameters that ZeRO-3 does not shard."""
    return sum(numel for numel in map(math.prod, shapes) if numel <= PERSISTENT)


def trained_shapes(student: Student, teacher: Architecture) -> tuple[list[tuple[int, ...]], list[int]]:
    """Returns the parameter shapes of a student and its projectors, and the sizes of the blocks that FSDP gathers.

    A block's size is its number of parameters. The last block holds all parameters outside the denoiser's blocks.
    Raises UserError if a feature pair cannot be compared.
    """
    with torch.device("meta"):
        network: Any = student.denoiser.build()
        modules = (network, *projectors(student, teacher))
    shapes = [tuple(p.shape) for module in modules for p in module.parameters()]
    blocks = _block_sizes(student.denoiser, network)
    rest = sum(math.prod(shape) for shape in shapes) - sum(blocks)
    return shapes, [*blocks, rest]


def block_sizes(denoiser: Architecture) -> list[int]:
    """Returns the number of parameters of each block of a denoiser."""
    return _block_sizes(denoiser, denoiser.blank())


def _block_sizes(denoiser: Architecture, network: Any) -> list[int]:
    return [sum(p.numel() for p in block.parameters()) for block in denoiser.family.blocks(network)]


def activations_per_sample(
    student: Student,
    teacher: Architecture,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
    compared: float = COMPARED_BYTES["bf16"]["feature"],
) -> int:
    """Returns the bytes per sample that the student's forward pass and the feature losses keep for the backward pass.

    dtype: compute dtype of the student. checkpointing: True with activation checkpointing.
    compared: bytes that the losses keep per element of a tapped feature, see COMPARED_BYTES.
    """
    activations = saved_activations(student.denoiser, 1, dtype=dtype, checkpointing=checkpointing)
    tapped = feature_shapes(teacher, [teacher_name for teacher_name, _ in student.pairs])
    return activations + round(compared * sum(math.prod(shape) for shape in tapped))


@once_per_architecture
def saved_activations(
    denoiser: Architecture,
    batch: int,
    tokens: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
) -> int:
    """Returns the bytes that a forward pass keeps for its backward pass, without the parameters.

    Attention is assumed to be fused. batch: samples. tokens: length of the text; None: the family's.
    With checkpointing, these are the inputs of all parts that run again, and the activations of the largest part.
    """
    total, largest_part = _saved_bytes(denoiser, batch, tokens, dtype, checkpointing=False)
    if not checkpointing:
        return total
    inputs, _ = _saved_bytes(denoiser, batch, tokens, dtype, checkpointing=True)
    return inputs + largest_part


def _saved_bytes(
    denoiser: Architecture, batch: int, tokens: int | None, dtype: torch.dtype, checkpointing: bool
) -> tuple[int, int]:
    """Returns the bytes that one forward pass saves, and those that its largest part saves.

    The parts are the ones that activation checkpointing runs again.
    """
    saved: dict[int, Any] = {}  # id -> storage; storages are kept alive so that ids are not reused
    saved_before: list[int] = []  # number of saved storages at the start of each running part
    part_bytes = [0]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    def begin(module: nn.Module, inputs: object) -> None:
        saved_before.append(len(saved))

    def end(module: nn.Module, inputs: object, output: object) -> None:
        new = list(saved.items())[saved_before.pop() :]
        part_bytes.append(sum(storage.nbytes() for key, storage in new if key not in parameters))

    with FakeTensorMode():
        torch.set_default_dtype(dtype)  # fake parameters cannot be cast later
        try:
            network = denoiser.build()
        finally:
            torch.set_default_dtype(torch.float32)
        if checkpointing:
            network.train().enable_gradient_checkpointing()
        parameters = {p.untyped_storage()._cdata for p in network.parameters()}
        for part in network.modules():
            if isinstance(part, denoiser.family.checkpointed):
                part.register_forward_pre_hook(begin)
                part.register_forward_hook(end)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = blank_forward(denoiser, network, batch, tokens, dtype)
        total = sum(storage.nbytes() for key, storage in saved.items() if key not in parameters)
    assert out.shape[0] == batch  # using `out` here keeps the graph and its saved tensors alive until now
    return total, max(part_bytes)
