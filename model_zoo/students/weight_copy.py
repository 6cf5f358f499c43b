"""Copies the teacher's weights into a student, tensor by tensor, using the rule's name map."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from randcond.launch.errors import UserError
from randcond.model_zoo.students.rule import Student


def copy_teacher_weights(student: Student, network: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """Copies the teacher's tensors into the student's network in place and returns how many were copied.

    weights: the teacher's tensors by name. Raises UserError if the student has no map, or if a mapped teacher tensor is
    missing or has another shape than the student's.
    """
    if student.teacher_name is None:
        raise UserError("student.init: this student's widths differ from the teacher's; use init: random")
    copied = 0
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            teacher_name = student.teacher_name(name)
            if teacher_name is None:
                continue
            source = weights.get(teacher_name)
            if source is None or source.shape != tensor.shape:
                problem = "is missing" if source is None else f"has shape {tuple(source.shape)}"
                raise UserError(
                    f"student.init: {name} {tuple(tensor.shape)} is copied from the teacher's {teacher_name}, "
                    f"which {problem}; use init: random, or another student.rule"
                )
            tensor.copy_(source)
            copied += 1
    return copied
