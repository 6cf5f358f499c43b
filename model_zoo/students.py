"""Students as rules: a teacher's U-Net configuration in, a smaller one out, with its weight map and feature pairs.

The block rules are BK-SDM's (B-Base, B-Small, B-Tiny), the channel rules the paper's own (C-Base ... C-Micro).
A new student is one entry in STUDENTS.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

UNetConfig = dict[str, Any]
FeaturePair = tuple[str, str]  # (teacher module, student module), unwrapped names


@dataclass(frozen=True)
class StudentRule:
    """How a student is derived from its teacher."""

    config: Callable[[UNetConfig], UNetConfig]
    teacher_name: Callable[[str], str] | None  # student parameter -> teacher parameter; None: sizes differ, no copy
    pairs: Callable[[UNetConfig], list[FeaturePair]]  # the taps of Eq. 2
    summary: str


def _block_config(drop_mid: bool = False, drop_innermost: bool = False) -> Callable[[UNetConfig], UNetConfig]:
    """One resnet (and attention) per down block, two per up block; optionally no mid block, no innermost stage."""

    def derive(teacher: UNetConfig) -> UNetConfig:
        if teacher["layers_per_block"] != 2:
            raise ValueError(f"block rules need a teacher with layers_per_block 2, not {teacher['layers_per_block']}")
        student = {**teacher, "layers_per_block": 1}
        if drop_mid or drop_innermost:
            student["mid_block_type"] = None
        if drop_innermost:
            if len(teacher["block_out_channels"]) < 4:
                raise ValueError(
                    f"block-tiny removes the innermost of four stages; "
                    f"this teacher has {len(teacher['block_out_channels'])}"
                )
            student["block_out_channels"] = teacher["block_out_channels"][:-1]
            student["down_block_types"] = teacher["down_block_types"][:-1]
            student["up_block_types"] = teacher["up_block_types"][1:]
        return student

    return derive


def _block_name(drop_innermost: bool = False) -> Callable[[str], str]:
    """Student -> teacher names: in up blocks layer 1 <- layer 2; B-Tiny's up blocks sit one further in."""

    def teacher_name(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "up_blocks":
            if drop_innermost:
                parts[1] = str(int(parts[1]) + 1)
            if parts[2] in {"resnets", "attentions"} and parts[3] == "1":
                parts[3] = "2"
        return ".".join(parts)

    return teacher_name


def _block_pairs(teacher: UNetConfig) -> list[FeaturePair]:
    """The outputs of every down and up block, same names on both sides (paper Sec. 4.2)."""
    stages = len(teacher["block_out_channels"])
    names = [f"{side}_blocks.{stage}" for side in ("down", "up") for stage in range(stages)]
    return [(name, name) for name in names]


def _tiny_pairs(teacher: UNetConfig) -> list[FeaturePair]:
    """B-Tiny's taps: the student's up blocks answer to the teacher's next outer ones."""
    last = len(teacher["block_out_channels"]) - 2  # the student's innermost stage has no downsampler
    downs = [(f"down_blocks.{stage}", f"down_blocks.{stage}") for stage in range(last)]
    inner = (f"down_blocks.{last}.attentions.1.proj_out", f"down_blocks.{last}.attentions.0.proj_out")
    ups = [(f"up_blocks.{stage + 1}", f"up_blocks.{stage}") for stage in range(last + 1)]
    return [*downs, inner, *ups]


def _channel_config(multiplier: float) -> Callable[[UNetConfig], UNetConfig]:
    """Every width times the multiplier, rounded to what group norms and heads divide."""

    def derive(teacher: UNetConfig) -> UNetConfig:
        heads = teacher["attention_head_dim"]  # diffusers' name for the number of heads in SD 1.x
        unit = math.lcm(teacher["norm_num_groups"], *([heads] if isinstance(heads, int) else heads))
        widths = [max(unit, round(width * multiplier / unit) * unit) for width in teacher["block_out_channels"]]
        return {**teacher, "block_out_channels": tuple(widths)}

    return derive


def _channel_pairs(teacher: UNetConfig) -> list[FeaturePair]:
    """The channel students' taps: samplers, the innermost resnet, the mid attention, the last projection."""
    last = len(teacher["block_out_channels"]) - 1
    names = [f"down_blocks.{stage}.downsamplers.0.conv" for stage in range(last)]
    names += [f"down_blocks.{last}.resnets.1.conv2", "mid_block.attentions.0.proj_out"]
    names += [f"up_blocks.{stage}.upsamplers.0.conv" for stage in range(last)]
    names += [f"up_blocks.{last}.attentions.2.proj_out"]
    return [(name, name) for name in names]


def _channel(multiplier: float, summary: str) -> StudentRule:
    return StudentRule(_channel_config(multiplier), None, _channel_pairs, summary)


STUDENTS: dict[str, StudentRule] = {
    "block-base": StudentRule(_block_config(), _block_name(), _block_pairs, "one layer less in every block"),
    "block-small": StudentRule(_block_config(drop_mid=True), _block_name(), _block_pairs, "block-base, no mid block"),
    "block-tiny": StudentRule(
        _block_config(drop_innermost=True), _block_name(True), _tiny_pairs, "block-small, no innermost stage"
    ),
    "channel-base": _channel(0.8, "all layers, 0.8 of the width"),
    "channel-small": _channel(0.7, "all layers, 0.7 of the width"),
    "channel-tiny": _channel(0.6, "all layers, 0.6 of the width"),
    "channel-micro": _channel(0.5, "all layers, half the width"),
}


def find_rule(name: str) -> StudentRule:
    """The rule of that name; raises ValueError listing the known ones."""
    if name not in STUDENTS:
        raise ValueError(f"student.rule: unknown student {name!r}; known: {', '.join(STUDENTS)}")
    return STUDENTS[name]


def student_config(name: str, teacher: UNetConfig) -> UNetConfig:
    """The student's U-Net configuration; raises ValueError when the rule does not apply to this teacher."""
    # diffusers' own bookkeeping (_use_default_values) would turn what the rule changed back into defaults.
    return find_rule(name).config({key: value for key, value in teacher.items() if not key.startswith("_")})


def build_student(name: str, teacher: UNet2DConditionModel, init: str, seed: int) -> UNet2DConditionModel:
    """The student U-Net of a rule, in fp32, randomly initialised by its seed or holding the teacher's weights.

    Raises ValueError when the rule does not apply to this teacher, or cannot copy from it.
    """
    rule = find_rule(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = UNet2DConditionModel.from_config(student_config(name, teacher.config))
    if init == "teacher":
        copy_teacher_weights(rule, student, teacher)
    return student


def copy_teacher_weights(rule: StudentRule, student: nn.Module, teacher: nn.Module) -> int:
    """Fills every student tensor with its teacher tensor and returns how many; raises ValueError if one has none."""
    if rule.teacher_name is None:
        raise ValueError("student.init: this student's widths differ from the teacher's; use init: random")
    theirs, ours = teacher.state_dict(), student.state_dict()
    copied = {}
    for name, tensor in ours.items():
        source = theirs.get(rule.teacher_name(name))
        if source is None or source.shape != tensor.shape:
            raise ValueError(
                f"student.init: the teacher has no {rule.teacher_name(name)} of shape {tuple(tensor.shape)}"
            )
        copied[name] = source.to(tensor.dtype)
    student.load_state_dict(copied)
    return len(copied)
