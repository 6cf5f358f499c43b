"""The paper's channel rules (C-Base ... C-Micro): all layers, fewer channels."""

import math
from collections.abc import Callable

from randcond.model_zoo.families.base.family import DenoiserConfig
from randcond.model_zoo.students.rule import FeaturePair
from randcond.model_zoo.students.unet_rule import UNetRule


def _channel_config(multiplier: float) -> Callable[[DenoiserConfig], DenoiserConfig]:
    """Returns a function from the teacher's configuration to that of a narrower student.

    Every width is multiplied by `multiplier` and rounded so that group norms and attention heads divide it.

    If the teacher has one number of heads for all stages (SD 1.x), the student keeps it.
    If the teacher has one number per stage (SD 2.x and SDXL, with heads of 64 channels), each number is multiplied
    too, and then rounded to the nearest divisor of the stage's new width.
    """

    def derive(teacher: DenoiserConfig) -> DenoiserConfig:
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


def _nearest_divisor(number: int, target: float) -> int:
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - target))


def _channel_pairs(teacher: DenoiserConfig) -> list[FeaturePair]:
    """Returns the feature pairs of channel students. Teacher and student use the same names.

    The taps are the down- and upsamplers, the innermost resnet, the mid attention and the last layer.
    """
    last = len(teacher["block_out_channels"]) - 1
    names = [f"down_blocks.{stage}.downsamplers.0.conv" for stage in range(last)]
    layers = teacher["layers_per_block"]
    names += [f"down_blocks.{last}.resnets.{layers - 1}.conv2"]
    names += ["mid_block.attentions.0.proj_out"] if teacher["mid_block_type"] else []
    names += [f"up_blocks.{stage}.upsamplers.0.conv" for stage in range(last)]
    without_attention = teacher["up_block_types"][-1] == "UpBlock2D"
    names += [
        f"up_blocks.{last}." + (f"resnets.{layers}.conv2" if without_attention else f"attentions.{layers}.proj_out")
    ]
    return [(name, name) for name in names]


def channel_rule(multiplier: float, summary: str) -> UNetRule:
    """Returns the rule for students with `multiplier` times the teacher's widths.

    They start from random weights, and their features are projected to the teacher's widths.
    """
    return UNetRule(summary, _channel_config(multiplier), _channel_pairs, None, projected=True)
