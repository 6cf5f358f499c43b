"""The losses as pure functions in fp32, each returning named terms whose sum is the loss; `train.losses` weighs them.

A new loss is one function over tensors, one entry in LOSSES and its weight's key in launch/sections.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from randcond.launch.errors import UserError

Terms = dict[str, Tensor]


@dataclass
class Outputs:
    """What one micro-batch gives the losses to compare."""

    prediction: Tensor  # the student's, [B, C, h, w]
    teacher: Tensor  # the teacher's, [B, C, h, w]
    features: list[Tensor]  # the student's, projected to the teacher's widths
    teacher_features: list[Tensor]
    names: list[str]  # of the teacher's tapped modules
    target: Tensor  # what a perfect network predicts (epsilon or v), [B, C, h, w]
    latents: Tensor  # x_0, [B, C, h, w]
    unreplaced: Tensor  # [B], whether the latent is shown with its own caption
    unreplaced_in_batch: int  # their number over the whole global batch
    global_batch: int


def per_sample_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean over [C, h, w] of the squared difference, sample by sample -> [B]."""
    return F.mse_loss(ours.float(), theirs.float(), reduction="none").mean(dim=(1, 2, 3))


def output_loss(student: Tensor, teacher: Tensor) -> Terms:
    """Eq. 1: mean squared difference of the two predictions [B, C, h, w]."""
    return {"output": per_sample_error(student, teacher).mean()}


def feature_loss(names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Terms:
    """Eq. 2: one mean squared difference over the whole tensor per tapped module, summed."""
    pairs = zip(names, student, teacher, strict=True)
    return {f"feature/{name}": F.mse_loss(ours.float(), theirs.float()) for name, ours, theirs in pairs}


def task_loss(
    prediction: Tensor, target: Tensor, unreplaced: Tensor, unreplaced_in_batch: int, global_batch: int
) -> Terms:
    """L_DDPM, the denoising loss on pairs that kept their caption: their sum over the global batch by their number.

    Scaled so that its mean over micro-batches and ranks is just that, whatever their number; 0 when there are none.
    """
    kept = per_sample_error(prediction, target) * unreplaced  # [B]
    return {"task": kept.sum() / max(1, unreplaced_in_batch) * (global_batch / len(kept))}


def spatial_loss(names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Terms:
    """SLIM's L_spatial = sum_i ||X_T - X_S||^2 (mean over the tensor) over the prediction and the tapped features."""
    pairs = zip(names, student, teacher, strict=True)
    return {f"spatial/{name}": F.mse_loss(ours.float(), theirs.float()) for name, ours, theirs in pairs}


def frequency_loss(
    names: Sequence[str],
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    latents: Tensor,
    alpha: float = -1.0,
    floor: float = 1e-2,
) -> Terms:
    """SLIM's L_freq = sum_i w_i ||F(X_T) - F(X_S)||^2, w = |F(x_0 resized to X_i)|^alpha; F the orthonormal 2-D DFT.

    Rare frequencies weigh more. |F(x_0)| is averaged over the channels (x_0 and X_i have different ones) and held
    above `floor`: both ours.
    """
    terms = {}
    for name, ours, theirs in zip(names, student, teacher, strict=True):
        if ours.ndim != 4:
            raise UserError(f"train.losses.frequency: {name} gives {tuple(ours.shape)}, no image to transform: use 0")
        difference = torch.fft.fft2(ours.float() - theirs.float(), norm="ortho").abs().square()  # [B, C, h, w]
        resized = F.interpolate(latents.float(), size=ours.shape[-2:], mode="area")
        spectrum = torch.fft.fft2(resized, norm="ortho").abs().mean(dim=1, keepdim=True)  # [B, 1, h, w]
        terms[f"frequency/{name}"] = (spectrum.clamp(min=floor).pow(alpha) * difference).mean()
    return terms


def _everything(o: Outputs) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """The prediction and the tapped features: what SLIM's X_i range over."""
    return ["prediction", *o.names], [o.prediction, *o.features], [o.teacher, *o.teacher_features]


LOSSES: dict[str, Callable[[Outputs], Terms]] = {
    "output": lambda o: output_loss(o.prediction, o.teacher),
    "feature": lambda o: feature_loss(o.names, o.features, o.teacher_features),
    "task": lambda o: task_loss(o.prediction, o.target, o.unreplaced, o.unreplaced_in_batch, o.global_batch),
    "spatial": lambda o: spatial_loss(*_everything(o)),
    "frequency": lambda o: frequency_loss(*_everything(o), o.latents),
}


def weigh(weights: dict[str, float], outputs: Outputs) -> tuple[Tensor, Terms]:
    """The weighted sum of the losses asked for, and their unweighted terms; a weight of 0 leaves a loss out."""
    total = outputs.prediction.new_zeros((), dtype=torch.float32)
    terms: Terms = {}
    for name, weight in weights.items():
        if weight == 0:
            continue
        parts = LOSSES[name](outputs)
        loss = sum(parts.values(), start=total.new_zeros(()))  # a rule may have no pairs
        total = total + weight * loss
        terms |= {name: loss, **parts}
    return total, {"total": total, **terms}
