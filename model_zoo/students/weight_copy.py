"""Copies the teacher's weights into a student, tensor by tensor, by the rule's name map."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from randcond.launch.errors import UserError
from randcond.model_zoo.students.rule import StudentRule


def copy_teacher_weights(rule: StudentRule, student: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """Fills the student's tensors with their teacher tensors and returns how many.

    Raises UserError if a tensor that the rule maps has none of its shape.
    """
    if rule.teacher_name is None:
        raise UserError("student.init: this student's widths differ from the teacher's; use init: random")
    copied = 0
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            wanted = rule.teacher_name(name)
            if wanted is None:
                continue
            source = weights.get(wanted)
            if source is None or source.shape != tensor.shape:
                found = "is not there" if source is None else f"has shape {tuple(source.shape)}"
                raise UserError(
                    f"student.init: {name} {tuple(tensor.shape)} takes the teacher's {wanted}, which {found}; "
                    f"use init: random, or another student.rule"
                )
            tensor.copy_(source)
            copied += 1
    return copied
