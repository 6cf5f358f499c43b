"""Rows of `randcond students`: size, cost and memory of a student rule, as plain data."""

from dataclasses import asdict
from typing import Any

from randcond.launch.config.engines import EngineKind
from randcond.model_zoo.cost.flops import UNetCost, training_flop, unet_cost
from randcond.model_zoo.cost.memory import Sharding, activations_per_sample, state_memory, trained_shapes
from randcond.model_zoo.denoiser.configuration import UNetConfig, plain_config
from randcond.model_zoo.students.registry import find_rule, student_config


def student_row(
    name: str, teacher: UNetConfig, teacher_cost: UNetCost, micro_batch: int, zero_stage: int, ranks: int
) -> dict[str, Any]:
    """Returns one row of `randcond students`. Raises UserError if the rule does not apply to this teacher.

    micro_batch: samples per GPU. zero_stage and ranks: how the training state is sharded.
    """
    rule, config = find_rule(name), student_config(name, teacher)
    cost = unet_cost(rule.model, config)
    state = state_memory(*trained_shapes(name, teacher), Sharding(EngineKind(f"zero-{zero_stage}"), ranks))
    memory = {
        "teacher": 2 * teacher_cost.parameters,
        **asdict(state),
        "activations": micro_batch * activations_per_sample(name, teacher),
    }
    return {
        "name": name,
        "summary": rule.summary,
        **shape_columns(config),
        **cost_columns(cost),
        "training_tflop_per_sample": round(training_flop(teacher_cost, cost) / 1e12, 2),
        "memory_gb": {key: round(value / 1e9, 2) for key, value in memory.items()},
    }


def shape_columns(config: UNetConfig) -> dict[str, Any]:
    """Returns the columns that describe a configuration in Table A."""
    plain = plain_config(config)
    return {
        "block_out_channels": list(plain["block_out_channels"]),
        "layers_per_block": plain["layers_per_block"],
        "transformer_layers_per_block": plain.get("transformer_layers_per_block", 1),
        "mid_block": plain.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None,
    }


def cost_columns(cost: UNetCost) -> dict[str, Any]:
    """Returns the numbers of parameters and MACs, exact and in the paper's units (millions and billions)."""
    return {
        "parameters": cost.parameters,
        "parameters_m": round(cost.parameters / 1e6, 1),
        "macs_g": round(cost.macs / 1e9, 1),
        "attention_macs_g": round(cost.attention_macs / 1e9, 1),
    }
