"""The losses of the paper as pure functions, computed in fp32, each returning named terms."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def output_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Eq. 1 per sample: mean over [C, h, w] of the squared difference of the two epsilons -> [B]."""
    return F.mse_loss(student.float(), teacher.float(), reduction="none").mean(dim=(1, 2, 3))


def feature_losses(names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
    """Eq. 2's terms, one mean squared error over the whole tensor per tapped block; their sum is the loss."""
    return {
        name: F.mse_loss(ours.float(), theirs.float())
        for name, ours, theirs in zip(names, student, teacher, strict=True)
    }
