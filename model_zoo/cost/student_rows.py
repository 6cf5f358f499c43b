"""Rows of `randcond students`: size, cost and memory of a student rule, as plain data."""

import math
from dataclasses import asdict
from typing import Any

from randcond.launch.config.engines import EngineKind
from randcond.model_zoo.cost.flops import DenoiserCost, denoiser_cost, training_flop
from randcond.model_zoo.cost.memory import Sharding, activations_per_sample, state_memory, trained_shapes
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.students.registry import find_rule, student_of


def rounded(value: float, digits: int) -> float:
    """Returns a number with some digits after the point, or two significant ones if it is smaller than these show.

    >>> rounded(859.52, 1), rounded(0.00416, 1), rounded(0, 1)
    (859.5, 0.0042, 0.0)
    """
    if not value:
        return 0.0
    return round(value, max(digits, 1 - math.floor(math.log10(abs(value)))))


def student_row(
    name: str, teacher: Architecture, teacher_cost: DenoiserCost, micro_batch: int, zero_stage: int, ranks: int
) -> dict[str, Any]:
    """Returns one row of `randcond students`. Raises UserError if the rule does not apply to this teacher.

    micro_batch: samples per GPU. zero_stage and ranks: how the training state is sharded.
    """
    student = student_of(name, teacher)
    cost = denoiser_cost(student.denoiser)
    state = state_memory(*trained_shapes(student, teacher), Sharding(EngineKind(f"zero-{zero_stage}"), ranks))
    memory = {
        "teacher": 2 * teacher_cost.parameters,
        **asdict(state),
        "activations": micro_batch * activations_per_sample(student, teacher),
    }
    return {
        "name": name,
        "summary": find_rule(name).summary,
        **shape_columns(student.denoiser),
        **cost_columns(cost),
        "training_tflop_per_sample": rounded(training_flop(teacher_cost, cost) / 1e12, 2),
        "memory_gb": {key: rounded(value / 1e9, 2) for key, value in memory.items()},
    }


def shape_columns(denoiser: Architecture) -> dict[str, Any]:
    """Returns the columns that describe an architecture: those of Table A for a U-Net."""
    config = denoiser.config
    if stack := denoiser.family.stack(config):
        heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
        return {"blocks": len(stack.names), "width": heads * head_dim, "heads": heads, "head_dim": head_dim}
    return {
        "block_out_channels": list(config["block_out_channels"]),
        "layers_per_block": config["layers_per_block"],
        "transformer_layers_per_block": config.get("transformer_layers_per_block", 1),
        "mid_block": config.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None,
    }


def cost_columns(cost: DenoiserCost) -> dict[str, Any]:
    """Returns the numbers of parameters and MACs, exact and in the paper's units (millions and billions)."""
    return {
        "parameters": cost.parameters,
        "parameters_m": rounded(cost.parameters / 1e6, 1),
        "macs_g": rounded(cost.macs / 1e9, 1),
        "attention_macs_g": rounded(cost.attention_macs / 1e9, 1),
    }
