"""One distillation step: encode the captions, noise the latents, ask teacher and student, compare (Eq. 1 + Eq. 2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from randcond.model_zoo.features import FeatureTaps
from randcond.model_zoo.students import FeaturePair
from randcond.model_zoo.teacher import Teacher
from randcond.train.losses import feature_losses, output_loss

StudentForward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, list[Tensor]]]


@dataclass
class Losses:
    """What one micro-batch gave: the loss to follow, its named terms, and Eq. 1 sample by sample."""

    total: Tensor
    terms: dict[str, Tensor]
    per_sample: Tensor  # [B], detached


class DistillationStep:
    """Holds the frozen teacher and its taps; called with the engine's forward and a batch of the stream."""

    def __init__(self, teacher: Teacher, pairs: list[FeaturePair], output_weight: float, feature_weight: float) -> None:
        self.teacher = teacher
        self.names = [theirs for theirs, _ in pairs]
        self.taps = FeatureTaps(teacher.unet, self.names)
        self.output_weight, self.feature_weight = output_weight, feature_weight

    def __call__(self, student: StudentForward, batch: dict[str, Tensor], dtype: torch.dtype) -> Losses:
        """Returns the losses of one micro-batch; `dtype` is the student's compute type."""
        device = self.teacher.device
        timesteps = batch["timesteps"].to(device, non_blocking=True)  # [B]
        latents = batch["latents"].to(device, non_blocking=True)  # [B, C, h, w]
        noise = batch["noise"].to(device, non_blocking=True)  # [B, C, h, w]
        noised = self.teacher.add_noise(latents, noise, timesteps)
        condition = self.teacher.encode(batch["token_ids"])  # [B, L, width]
        with torch.no_grad():
            target = self.teacher.unet(noised.to(self.teacher.dtype), timesteps, condition, return_dict=False)[0]
            target_features = self.taps.collect()
        epsilon, features = student(noised.to(dtype), timesteps, condition.to(dtype))

        per_sample = output_loss(epsilon, target)
        blocks = feature_losses(self.names, features, target_features)
        output, feature = per_sample.mean(), torch.stack(list(blocks.values())).sum()
        total = self.output_weight * output + self.feature_weight * feature
        terms = {"total": total, "output": output, "feature": feature}
        terms |= {f"feature/{name}": loss for name, loss in blocks.items()}
        return Losses(total, {name: term.detach() for name, term in terms.items()}, per_sample.detach())
