"""What a U-Net costs: parameters, MACs, training FLOP, memory; from its configuration alone, on no device, in seconds.

MACs are of one call at batch 1 and 77 caption tokens; convolutions and linear layers (the paper's convention) and the
attention's two matrix products are counted apart, by torch's own FLOP counter on meta tensors.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from randcond.model_zoo.condition import blank_forward
from randcond.model_zoo.features import feature_shapes
from randcond.model_zoo.students import UNetConfig, find_rule, plain_config, student_config

TOKENS = 77
FP32_COPIES = 2 * 4  # bytes per compared feature: Eq. 2 keeps the teacher's and the student's in fp32
_ATTENTION_OPS = {"aten.bmm"}  # scaled dot products, as they appear on meta tensors
_LAYER_OPS = {"aten.convolution", "aten.addmm", "aten.mm"}


@dataclass(frozen=True)
class UNetCost:
    """One U-Net: numbers, not millions."""

    parameters: int
    macs: int  # convolution and linear layers
    attention_macs: int

    @property
    def flop(self) -> int:
        """Floating-point operations of one call, attention included: two per MAC."""
        return 2 * (self.macs + self.attention_macs)


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU while a student trains in bf16 with fp32 master weights (the U-Nets; no text encoder, no VAE)."""

    weights: int  # the teacher's and the student's, bf16
    gradients: int  # bf16, and fp32 where they are accumulated
    optimizer: int  # fp32 master weights, AdamW's two moments, EMA
    activations: int  # what the student's forward and the losses keep for the backward


def unet_cost(model: type[UNet2DConditionModel], config: UNetConfig, tokens: int = TOKENS) -> UNetCost:
    """Parameters and MACs of a U-Net class at a configuration.

    Raises ValueError naming an operation that would be counted in neither column.
    """
    with torch.device("meta"), torch.no_grad():
        unet = model.from_config(config)
        with FlopCounterMode(display=False) as counter:
            blank_forward(unet, tokens=tokens)
    flop = {str(op): number for op, number in counter.get_flop_counts()["Global"].items()}
    if unknown := flop.keys() - _ATTENTION_OPS - _LAYER_OPS:
        raise ValueError(f"cost: operations {sorted(unknown)} are counted in no column")
    macs, attention = (sum(flop.get(op, 0) for op in ops) // 2 for ops in (_LAYER_OPS, _ATTENTION_OPS))
    return UNetCost(sum(p.numel() for p in unet.parameters()), macs, attention)


def saved_activations(model: type[UNet2DConditionModel], config: UNetConfig, batch: int, tokens: int = TOKENS) -> int:
    """Bytes that a bf16 forward keeps for its backward, parameters excluded, with a fused attention."""
    saved: dict[int, Any] = {}  # storage -> itself: held, so that no number is given twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)  # fake parameters cannot be cast later
        try:
            unet = model.from_config(config)
        finally:
            torch.set_default_dtype(torch.float32)
        own = {p.untyped_storage()._cdata for p in unet.parameters()}
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = blank_forward(unet, batch, tokens, torch.bfloat16)
        total = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    assert out.shape[0] == batch  # the graph, and with it every saved tensor, has lived until here
    return total


def training_flop(teacher: UNetCost, student: UNetCost) -> int:
    """Floating-point operations of distilling one sample: teacher forward, student forward and backward."""
    return teacher.flop + 3 * student.flop


def training_memory(teacher: int, student: int, activations: int, zero_stage: int, ranks: int) -> Memory:
    """Bytes per GPU for numbers of parameters; ZeRO 1 shards the optimizer, 2 the gradients too, 3 the weights too."""

    def share(stage: int) -> int:
        return ranks if zero_stage >= stage else 1

    return Memory(
        weights=2 * teacher + 2 * student // share(3),
        gradients=(2 + 4) * student // share(2),
        optimizer=(4 + 8 + 4) * student // share(1),
        activations=activations,
    )


def student_row(
    name: str, teacher: UNetConfig, teacher_cost: UNetCost, micro_batch: int, zero_stage: int, ranks: int
) -> dict[str, Any]:
    """One line of `randcond students` as plain data; raises ValueError when the rule does not apply to this teacher."""
    rule, config = find_rule(name), student_config(name, teacher)
    cost = unet_cost(rule.model, config)
    tapped = feature_shapes(UNet2DConditionModel, teacher, [theirs for theirs, _ in rule.pairs(teacher)])
    compared = micro_batch * sum(math.prod(shape) for shape in tapped)
    kept = saved_activations(rule.model, config, micro_batch) + FP32_COPIES * compared
    memory = training_memory(teacher_cost.parameters, cost.parameters, kept, zero_stage, ranks)
    return {
        "name": name,
        "summary": rule.summary,
        **shape_columns(config),
        **cost_columns(cost),
        "training_tflop_per_sample": round(training_flop(teacher_cost, cost) / 1e12, 2),
        "memory_gb": {key: round(value / 1e9, 2) for key, value in vars(memory).items()},
    }


def shape_columns(config: UNetConfig) -> dict[str, Any]:
    """What a configuration looks like in Table A."""
    plain = plain_config(config)
    return {
        "block_out_channels": list(plain["block_out_channels"]),
        "layers_per_block": plain["layers_per_block"],
        "transformer_layers_per_block": plain.get("transformer_layers_per_block", 1),
        "mid_block": plain.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None,
    }


def cost_columns(cost: UNetCost) -> dict[str, Any]:
    """Parameters and MACs, exact and in the paper's units."""
    return {
        "parameters": cost.parameters,
        "parameters_m": round(cost.parameters / 1e6, 1),
        "macs_g": round(cost.macs / 1e9, 1),
        "attention_macs_g": round(cost.attention_macs / 1e9, 1),
    }
