"""The losses, as pure functions in fp32. Each returns named terms whose sum is the loss; `train.losses` weighs them.

A new loss needs one function over tensors, one entry in LOSSES, and the key of its weight in launch/config/sections.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from randcond.launch.errors import UserError

Terms = dict[str, Tensor]  # name -> scalar, fp32


@dataclass
class Outputs:
    """What teacher and student computed for one micro-batch of B samples: the input of every loss."""

    prediction: Tensor  # the student's, [B, C, h, w]
    teacher: Tensor  # the teacher's prediction, [B, C, h, w]
    features: list[Tensor]  # the student's, projected to the teacher's widths; each [B, C_i, h_i, w_i] or [B, L_i, C_i]
    teacher_features: list[Tensor]  # the same shapes
    names: list[str]  # the teacher's tapped modules
    target: Tensor  # the denoising target (epsilon, v or x_0), [B, C, h, w]
    latents: Tensor  # x_0, [B, C, h, w]
    unreplaced: Tensor  # bool [B], True where the latent is shown with its own caption
    unreplaced_in_batch: int  # the number of such samples in the global batch
    global_batch: int  # in samples
    feature_variant: str = "plain"  # train.feature_loss


@dataclass(frozen=True)
class Loss:
    """One entry of `train.losses`."""

    terms: Callable[[Outputs], Terms]
    # Needs `Outputs.unreplaced_in_batch`. The stream counts it only for such a loss, because the count costs time.
    counts_unreplaced: bool = False


def per_sample_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns the mean squared difference per sample [B]. The mean is over [C, h, w]; inputs [B, C, h, w]."""
    return F.mse_loss(ours.float(), theirs.float(), reduction="none").mean(dim=(1, 2, 3))


def output_loss(student: Tensor, teacher: Tensor) -> Terms:
    """Eq. 1: the mean squared difference of the two predictions [B, C, h, w]."""
    return {"output": per_sample_error(student, teacher).mean()}


def feature_loss(
    names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor], variant: str = "plain"
) -> Terms:
    """Eq. 2: the mean squared difference of each pair of features, summed over the pairs.

    `names`: the teacher's tapped modules. Features i of student and teacher have the same shape [B, ...].
    `variant`: a name in FEATURE_DISTANCES.
    """
    distance = FEATURE_DISTANCES[variant]
    pairs = zip(names, student, teacher, strict=True)
    return {f"feature/{name}": distance(ours.float(), theirs.float()) for name, ours, theirs in pairs}


def normalised_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns the mean squared difference over the variance of the teacher's feature of that sample. Inputs [B, ...].

    The features of a transformer's late blocks are many times larger than those of its early ones.
    """
    spread = theirs.flatten(1).var(dim=1).clamp(min=1e-12)  # [B]
    return ((ours - theirs).square().flatten(1).mean(dim=1) / spread).mean()


def masked_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns the mean squared difference over the values of the teacher within two standard deviations of their mean.

    Inputs [B, ...]. Mean and deviation are those of each sample. A transformer has a few values far beyond the others,
    which would decide the loss (TinyFusion, Sec. 3.4).
    """
    flat = theirs.flatten(1)
    mean, deviation = flat.mean(dim=1, keepdim=True), flat.std(dim=1, keepdim=True)
    within = (flat - mean).abs() <= 2 * deviation  # [B, n]
    squares = (ours - theirs).square().flatten(1) * within
    return (squares.sum(dim=1) / within.sum(dim=1)).mean()


FEATURE_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": F.mse_loss,
    "normalised": normalised_distance,
    "masked": masked_distance,
}


def task_loss(
    prediction: Tensor, target: Tensor, unreplaced: Tensor, unreplaced_in_batch: int, global_batch: int
) -> Terms:
    """L_DDPM: the denoising loss, averaged over the samples of the global batch that kept their caption.

    prediction, target: [B, C, h, w]; unreplaced: bool [B]. Each micro-batch returns its share, scaled so that the mean
    over micro-batches and ranks is this average. 0 if the global batch has no such sample.
    """
    kept = per_sample_error(prediction, target) * unreplaced  # [B]
    return {"task": kept.sum() / max(1, unreplaced_in_batch) * (global_batch / len(kept))}


def spatial_loss(names: Sequence[str], student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Terms:
    """SLIM's L_spatial = sum_i ||X_T,i - X_S,i||^2, with the mean over each tensor.

    X_i: the prediction and the tapped features. Those of student and teacher have the same shape [B, ...].
    """
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
    """SLIM's L_freq = sum_i w_i ||F(X_T,i) - F(X_S,i)||^2 with w_i = |F(x_0 resized to X_i)|^alpha.

    F is the orthonormal 2-D DFT. X_i: the prediction and the tapped features, [B, C_i, h_i, w_i]; latents (x_0):
    [B, C, h, w]. Rare frequencies weigh more. SLIM's paper leaves two points open: we average |F(x_0)| over the
    channels, because x_0 and X_i have different ones, and we clamp it to at least `floor`.
    Raises UserError if an X_i is not an image.
    """
    terms = {}
    for name, ours, theirs in zip(names, student, teacher, strict=True):
        if ours.ndim != 4:
            raise UserError(
                f"train.losses.frequency: {name} gives {tuple(ours.shape)}, which is not an image; set it to 0"
            )
        difference = torch.fft.fft2(ours.float() - theirs.float(), norm="ortho").abs().square()  # [B, C_i, h_i, w_i]
        resized = F.interpolate(latents.float(), size=ours.shape[-2:], mode="area")
        spectrum = torch.fft.fft2(resized, norm="ortho").abs().mean(dim=1, keepdim=True)  # [B, 1, h_i, w_i]
        terms[f"frequency/{name}"] = (spectrum.clamp(min=floor).pow(alpha) * difference).mean()
    return terms


def _slim_tensors(o: Outputs) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Returns SLIM's X_i, the prediction and the tapped features: their names, the student's and the teacher's."""
    return ["prediction", *o.names], [o.prediction, *o.features], [o.teacher, *o.teacher_features]


LOSSES: dict[str, Loss] = {
    "output": Loss(lambda o: output_loss(o.prediction, o.teacher)),
    "feature": Loss(lambda o: feature_loss(o.names, o.features, o.teacher_features, o.feature_variant)),
    "task": Loss(
        lambda o: task_loss(o.prediction, o.target, o.unreplaced, o.unreplaced_in_batch, o.global_batch),
        counts_unreplaced=True,
    ),
    "spatial": Loss(lambda o: spatial_loss(*_slim_tensors(o))),
    "frequency": Loss(lambda o: frequency_loss(*_slim_tensors(o), o.latents)),
}


def counts_unreplaced(weights: dict[str, float]) -> bool:
    """Returns True if a loss with a weight above 0 needs the number of unreplaced samples in the global batch."""
    return any(weight and LOSSES[name].counts_unreplaced for name, weight in weights.items())


def weigh(weights: dict[str, float], outputs: Outputs) -> tuple[Tensor, Terms]:
    """Returns the weighted sum of the losses, a scalar, and their unweighted terms.

    `weights`: loss name -> weight. A loss with weight 0 is not computed.
    """
    total = outputs.prediction.new_zeros((), dtype=torch.float32)
    terms: Terms = {}
    for name, weight in weights.items():
        if weight == 0:
            continue
        parts = LOSSES[name].terms(outputs)
        loss = sum(parts.values(), start=total.new_zeros(()))  # a student rule may have no feature pairs
        total = total + weight * loss
        terms |= {name: loss, **parts}
    return total, {"total": total, **terms}
