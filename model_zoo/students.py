"""Students as rules: a teacher's U-Net configuration in, a smaller one out, with its weight map and feature pairs.

The block rules are BK-SDM's (B-Base, B-Small, B-Tiny), the channel rules the paper's own (C-Base ... C-Micro), the
koala rules KOALA's (SDXL), slim any block rule with SLIM's wavelet gating. A new student is one entry in STUDENTS.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from randcond.model_zoo.slim import SlimUNet2DConditionModel

UNetConfig = dict[str, Any]
FeaturePair = tuple[str, str]  # (teacher module, student module), unwrapped names


@dataclass(frozen=True)
class StudentRule:
    """How a student is derived from its teacher; every function takes the teacher's U-Net configuration or names."""

    summary: str
    config: Callable[[UNetConfig], UNetConfig]  # raises ValueError where the rule does not apply
    pairs: Callable[[UNetConfig], list[FeaturePair]]  # the taps of Eq. 2
    # Student tensor -> teacher tensor, None for one that starts random; None for the whole map: sizes differ, no copy.
    teacher_name: Callable[[str], str | None] | None
    projected: bool = False  # features go through trainable 1x1 convolutions to the teacher's widths
    model: type[UNet2DConditionModel] = UNet2DConditionModel


def _one_layer_less(teacher: UNetConfig, drop_mid: bool) -> UNetConfig:
    """One resnet (and attention) per down block, two per up block; optionally no mid block."""
    if teacher["layers_per_block"] != 2:
        raise ValueError(f"block rules need a teacher with layers_per_block 2, not {teacher['layers_per_block']}")
    return {**teacher, "layers_per_block": 1} | ({"mid_block_type": None} if drop_mid else {})


def _block_config(drop_mid: bool = False, drop_innermost: bool = False) -> Callable[[UNetConfig], UNetConfig]:
    """BK-SDM: one layer less per block; optionally no mid block, no innermost stage."""

    def derive(teacher: UNetConfig) -> UNetConfig:
        student = _one_layer_less(teacher, drop_mid or drop_innermost)
        if drop_innermost:
            if len(teacher["block_out_channels"]) < 4:
                raise ValueError(
                    f"this rule removes the innermost of four stages; "
                    f"this teacher has {len(teacher['block_out_channels'])}: take block-small, or a koala rule"
                )
            stages = len(teacher["block_out_channels"])
            for key, value in teacher.items():  # every setting that is given per stage loses the innermost one's
                if isinstance(value, (list, tuple)) and len(value) == stages:
                    student[key] = value[1:] if key == "up_block_types" else value[:-1]
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


def _koala_config(kept: float, drop_mid: bool) -> Callable[[UNetConfig], UNetConfig]:
    """KOALA: one layer less per block, and a share of the innermost stage's transformer blocks."""

    def derive(teacher: UNetConfig) -> UNetConfig:
        depths = teacher["transformer_layers_per_block"]
        if isinstance(depths, int) or depths[-1] < 2:
            raise ValueError(
                f"koala rules shorten the innermost transformer stack; this teacher's "
                f"transformer_layers_per_block is {depths}: take a block rule"
            )
        student = _one_layer_less(teacher, drop_mid)
        student["transformer_layers_per_block"] = [*depths[:-1], max(1, round(depths[-1] * kept))]
        return student

    return derive


def _koala_pairs(kept: float, drop_mid: bool) -> Callable[[UNetConfig], list[FeaturePair]]:
    """KOALA's taps: the self-attentions of every kept transformer block, and the outermost convolutions."""
    derive = _koala_config(kept, drop_mid)

    def pairs(teacher: UNetConfig) -> list[FeaturePair]:
        depths = derive(teacher)["transformer_layers_per_block"]
        last = len(depths) - 1

        def attentions(theirs: str, depth: int, ours: str | None = None) -> list[FeaturePair]:
            blocks = [f"transformer_blocks.{number}.attn1" for number in range(depth)]
            return [(f"{theirs}.{block}", f"{ours or theirs}.{block}") for block in blocks]

        found = [("down_blocks.0.downsamplers.0.conv",) * 2]
        for stage in range(1, last + 1):
            found += attentions(f"down_blocks.{stage}.attentions.0", depths[stage])
        if not drop_mid:
            found += attentions("mid_block.attentions.0", depths[last])
        for stage in range(last):
            up, depth = f"up_blocks.{stage}.attentions", depths[last - stage]
            found += attentions(f"{up}.0", depth) + attentions(f"{up}.2", depth, ours=f"{up}.1")
        return [*found, (f"up_blocks.{last}.resnets.2.conv2", f"up_blocks.{last}.resnets.1.conv2")]

    return pairs


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


def _channel(multiplier: float, summary: str) -> StudentRule:
    return StudentRule(summary, _channel_config(multiplier), _channel_pairs, None, projected=True)


def _koala(kept: float, drop_mid: bool, summary: str) -> StudentRule:
    return StudentRule(summary, _koala_config(kept, drop_mid), _koala_pairs(kept, drop_mid), _block_name())


def _slim(rule: StudentRule) -> StudentRule:
    """A block rule with wavelet gating: the samplers start random, the rest by the block map."""

    def teacher_name(name: str) -> str | None:
        assert rule.teacher_name is not None
        return None if re.search(r"\.(down|up)samplers\.", name) else rule.teacher_name(name)

    summary = f"{rule.summary}; wavelet gating in place of the samplers"
    return replace(rule, summary=summary, teacher_name=teacher_name, model=SlimUNet2DConditionModel)


_BLOCKS = {
    "base": StudentRule("one layer less in every block", _block_config(), _block_pairs, _block_name()),
    "small": StudentRule("block-base, no mid block", _block_config(drop_mid=True), _block_pairs, _block_name()),
    "tiny": StudentRule(
        "block-small, no innermost stage", _block_config(drop_innermost=True), _tiny_pairs, _block_name(True)
    ),
}

STUDENTS: dict[str, StudentRule] = {
    **{f"block-{size}": rule for size, rule in _BLOCKS.items()},
    "channel-base": _channel(0.8, "all layers, 0.8 of the width"),
    "channel-small": _channel(0.7, "all layers, 0.7 of the width"),
    "channel-tiny": _channel(0.6, "all layers, 0.6 of the width"),
    "channel-micro": _channel(0.5, "all layers, half the width"),
    "koala-1b": _koala(0.6, False, "one layer less, 6 of 10 innermost transformer blocks"),
    "koala-700m": _koala(0.5, True, "one layer less, 5 of 10 innermost transformer blocks, no mid block"),
    **{f"slim-{size}": _slim(rule) for size, rule in _BLOCKS.items()},
}


def find_rule(name: str) -> StudentRule:
    """The rule of that name, or `channel-M` for any multiplier M; raises ValueError listing the known ones."""
    if name in STUDENTS:
        return STUDENTS[name]
    if (given := re.fullmatch(r"channel-(\d*\.?\d+)", name)) and (multiplier := float(given[1])) > 0:
        return _channel(multiplier, f"all layers, {multiplier:g} of the width")
    known = f"{', '.join(STUDENTS)}, or channel-M for any multiplier M, such as channel-0.65"
    raise ValueError(f"student.rule: unknown student {name!r}; known: {known}")


def plain_config(unet: Any) -> UNetConfig:
    """A U-Net's configuration without diffusers' own bookkeeping.

    `_use_default_values` would turn what a rule changed back into defaults, `_name_or_path` names this machine.
    """
    return {key: value for key, value in dict(unet).items() if not key.startswith("_")}


P = ParamSpec("P")
T = TypeVar("T")
Measure = Callable[Concatenate[type[UNet2DConditionModel], Mapping[str, Any], P], T]


def once_per_configuration(measure: Measure[P, T]) -> Measure[P, T]:
    """Remembers what a U-Net class at a configuration came to: a forward takes seconds, and rules share many."""
    known: dict[tuple[object, ...], T] = {}

    @wraps(measure)
    def remembered(model: type[UNet2DConditionModel], config: Mapping[str, Any], *a: P.args, **more: P.kwargs) -> T:
        key = (model, json.dumps(plain_config(config), sort_keys=True), repr((a, more)))
        if key not in known:
            known[key] = measure(model, config, *a, **more)
        return known[key]

    return remembered


def complete_config(stored: Any) -> UNetConfig:
    """A published unet/config.json with the keys it leaves out, as diffusers fills them."""
    with torch.device("meta"):
        return plain_config(UNet2DConditionModel.from_config(stored).config)


def student_config(name: str, teacher: UNetConfig) -> UNetConfig:
    """The student's U-Net configuration; raises ValueError when the rule does not apply to this teacher."""
    try:
        return find_rule(name).config(plain_config(teacher))
    except ValueError as error:
        raise ValueError(str(error) if "student.rule" in str(error) else f"student.rule: {name}: {error}") from None


def build_student(
    name: str, teacher: UNetConfig, seed: int, weights: Mapping[str, Tensor] | None = None
) -> UNet2DConditionModel:
    """The student U-Net of a rule, in fp32: randomly initialised by its seed, then holding the teacher's `weights`.

    Raises ValueError when the rule does not apply to this teacher, or cannot copy from it.
    """
    rule = find_rule(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = rule.model.from_config(student_config(name, teacher))
    if weights is not None:
        copy_teacher_weights(rule, student, weights)
    return student


def copy_teacher_weights(rule: StudentRule, student: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """Fills the student's tensors with their teacher tensors and returns how many.

    Raises ValueError if a tensor that the rule maps has none of its shape.
    """
    if rule.teacher_name is None:
        raise ValueError("student.init: this student's widths differ from the teacher's; use init: random")
    copied = 0
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            wanted = rule.teacher_name(name)
            if wanted is None:
                continue
            source = weights.get(wanted)
            if source is None or source.shape != tensor.shape:
                found = "is not there" if source is None else f"has shape {tuple(source.shape)}"
                raise ValueError(
                    f"student.init: {name} {tuple(tensor.shape)} takes the teacher's {wanted}, which {found}; "
                    f"use init: random, or another student.rule"
                )
            tensor.copy_(source)
            copied += 1
    return copied
