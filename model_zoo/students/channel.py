"""The paper's channel rules (C-Base ... C-Micro): all layers, narrower."""

import math
from collections.abc import Callable

from randcond.model_zoo.denoiser.configuration import UNetConfig
from randcond.model_zoo.students.rule import FeaturePair, StudentRule


def _channel_config(multiplier: float) -> Callable[[UNetConfig], UNetConfig]:
    """Every width times the multiplier, rounded to what group norms and heads divide.

    A teacher with one number of heads (SD 1.x) keeps it; one with a number per stage (SD 2.x, SDXL: heads of 64
    channels) gets the number nearest to its share.
    """

    def derive(teacher: UNetConfig) -> UNetConfig:
        # diffusers calls the number of heads attention_head_dim unless num_attention_heads is set
        key = "num_attention_heads" if teacher.get("num_attention_heads") else "attention_head_dim"
        heads = teacher[key]
        unit = teacher["norm_num_groups"] if not isinstance(heads, int) else math.lcm(teacher["norm_num_groups"], heads)
        widths = tuple(max(unit, round(width * multiplier / unit) * unit) for width in teacher["block_out_channels"])
        student = {**teacher, "block_out_channels": widths}
        if not isinstance(heads, int):
            student[key] = [_nearest_divisor(w, n * multiplier) for w, n in zip(widths, heads, strict=True)]
        return student

    return derive


def _nearest_divisor(number: int, wanted: float) -> int:
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - wanted))


def _channel_pairs(teacher: UNetConfig) -> list[FeaturePair]:
    """The channel students' taps: samplers, the innermost resnet, the mid attention, the last projection."""
    last = len(teacher["block_out_channels"]) - 1
    names = [f"down_blocks.{stage}.downsamplers.0.conv" for stage in range(last)]
    layers = teacher["layers_per_block"]
    names += [f"down_blocks.{last}.resnets.{layers - 1}.conv2"]
    names += ["mid_block.attentions.0.proj_out"] if teacher["mid_block_type"] else []
    names += [f"up_blocks.{stage}.upsamplers.0.conv" for stage in range(last)]
    plain = teacher["up_block_types"][-1] == "UpBlock2D"
    names += [f"up_blocks.{last}." + (f"resnets.{layers}.conv2" if plain else f"attentions.{layers}.proj_out")]
    return [(name, name) for name in names]


def channel_rule(multiplier: float, summary: str) -> StudentRule:
    """A student with `multiplier` times the teacher's widths, from random weights, with projected features."""
    return StudentRule(summary, _channel_config(multiplier), _channel_pairs, None, projected=True)
