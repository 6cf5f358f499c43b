"""Student rules by name, and the students that they define. To add a student, add an entry to STUDENTS."""

import re
from collections.abc import Mapping

import torch
from diffusers import ModelMixin
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.students.block import BLOCK_RULES
from randcond.model_zoo.students.channel import channel_rule
from randcond.model_zoo.students.depth import DepthRule
from randcond.model_zoo.students.koala import koala_rule
from randcond.model_zoo.students.rule import Student, StudentRule
from randcond.model_zoo.students.slim import slim_rule
from randcond.model_zoo.students.weight_copy import copy_teacher_weights
from randcond.model_zoo.students.width import WidthRule

STUDENTS: dict[str, StudentRule] = {
    **{f"block-{size}": rule for size, rule in BLOCK_RULES.items()},
    "channel-base": channel_rule(0.8, "all layers, 0.8 of the width"),
    "channel-small": channel_rule(0.7, "all layers, 0.7 of the width"),
    "channel-tiny": channel_rule(0.6, "all layers, 0.6 of the width"),
    "channel-micro": channel_rule(0.5, "all layers, half the width"),
    "koala-1b": koala_rule(0.6, False, "one layer less, 6 of 10 innermost transformer blocks"),
    "koala-700m": koala_rule(0.5, True, "one layer less, 5 of 10 innermost transformer blocks, no mid block"),
    **{f"slim-{size}": slim_rule(rule) for size, rule in BLOCK_RULES.items()},
}


def find_rule(name: str) -> StudentRule:
    """Returns the named rule. `channel-M` works for any multiplier M, `depth-N` for any number of blocks N
    (`depth-N+K` for a teacher with two kinds of blocks), and `width-M` for any M below 1.

    Raises UserError listing the known names if there is no such rule.

    >>> find_rule("channel-0.65").summary
    'all layers, 0.65 of the width'
    """
    if name in STUDENTS:
        return STUDENTS[name]
    if (match := re.fullmatch(r"channel-(\d*\.?\d+)", name)) and (multiplier := float(match[1])) > 0:
        return channel_rule(multiplier, f"all layers, {multiplier:g} of the width")
    if match := re.fullmatch(r"depth-(\d+(?:\+\d+)*)", name):
        return DepthRule(tuple(map(int, match[1].split("+"))))
    if match := re.fullmatch(r"depth-\[(-?\d+(?:, ?-?\d+)*)\]", name):  # a depth rule with student.keep
        kept = tuple(map(int, match[1].split(",")))
        return DepthRule((len(kept),), kept)
    if (match := re.fullmatch(r"width-(\d*\.?\d+)", name)) and 0 < (multiplier := float(match[1])) < 1:
        return WidthRule(multiplier)
    known = (
        f"{', '.join(STUDENTS)}, or channel-M for any multiplier M, such as channel-0.65; for transformers depth-N for "
        f"N blocks (depth-N+K of two kinds), or width-M"
    )
    raise UserError(f"student.rule: unknown student {name!r}; known: {known}")


def listed_rules(teacher: Architecture) -> list[str]:
    """Returns the rules that are worth a look for a teacher: for a transformer two thirds, half and a third of it."""
    if stack := teacher.family.stack(teacher.config):
        counts = [[max(2, round(length * share)) for length in stack.groups] for share in (2 / 3, 1 / 2, 1 / 3)]
        depths = [f"depth-{'+'.join(map(str, count))}" for count in counts]
        return [*dict.fromkeys([*depths, teacher.family.default_rule(teacher.config)]), "width-0.5"]
    return list(STUDENTS)


def default_rule(teacher: Architecture) -> str:
    """Returns the rule for a teacher if a person names none: its family's, or the first one that applies to it.

    A student that is compressed once more may lack the layers that its family's rule removes.
    """
    usual = teacher.family.default_rule(teacher.config)
    for name in dict.fromkeys([usual, *listed_rules(teacher)]):
        try:
            student_of(name, teacher)
        except UserError:
            continue
        return name
    return usual


def student_of(name: str, teacher: Architecture) -> Student:
    """Returns the student of a teacher by the named rule. Raises UserError if the rule does not apply to it."""
    rule = find_rule(name)
    try:
        return rule.derive(teacher)
    except UserError as error:
        if str(error).startswith("student.keep"):
            raise
        raise UserError(f"student.rule: {name}: {error}") from None


def build_student(
    name: str, teacher: Architecture, seed: int, weights: Mapping[str, Tensor] | None = None
) -> ModelMixin:
    """Builds the student network of a rule, in fp32, initialised randomly with `seed`.

    weights: the tensors of the teacher's denoiser by name. If given, they are copied by the rule's map.
    Raises UserError if the rule does not apply to this teacher, or if its weights cannot be copied.
    """
    student = student_of(name, teacher)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = student.denoiser.build()
    if weights is not None:
        copy_teacher_weights(student, network, weights)
    return network
