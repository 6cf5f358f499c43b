"""One distillation step: encode the captions, noise the latents, ask teacher and student, compare."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from randcond.model_zoo.denoiser.condition import Condition, cast, denoise
from randcond.model_zoo.students.features import FeatureTaps
from randcond.model_zoo.teacher import Teacher
from randcond.train.losses import Outputs, per_sample_error, weigh

StudentForward = Callable[[Tensor, Tensor, Condition], tuple[Tensor, list[Tensor]]]


@dataclass
class Losses:
    """What one micro-batch gave: the loss to follow, its named terms, and Eq. 1 sample by sample."""

    total: Tensor
    terms: dict[str, Tensor]
    per_sample: Tensor  # [B], detached


def draw_noise(seeds: Tensor, like: Tensor) -> Tensor:
    """Noise of the shape and on the device of `like`, each sample's by its own seed [B].

    Drawn on the CPU, so that every machine draws the same; here and not by the loader's workers, who would have to hand
    over three times as many bytes.
    """
    noise = torch.empty(like.shape, pin_memory=like.device.type == "cuda")
    generator = torch.Generator()
    for sample, seed in zip(noise, seeds.tolist(), strict=True):
        sample.normal_(generator=generator.manual_seed(seed))
    return noise.to(like.device, non_blocking=True)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch of the stream with its latents (fp32) and its noise on the device, [B, C, h, w] both; idempotent."""
    if "noise" in batch:
        return batch
    latents = batch["latents"].to(device, non_blocking=True).float()
    return {**batch, "latents": latents, "noise": draw_noise(batch["noise_seed"], latents)}


class DistillationStep:
    """Holds the frozen teacher and its taps; called with the engine's forward and a batch of the stream."""

    def __init__(
        self,
        teacher: Teacher,
        names: list[str],
        weights: dict[str, float],
        global_batch: int,
        zero_null: bool = True,
        channels_last: bool = False,
        teacher_graph: bool = False,
    ) -> None:
        """`names`: the teacher's tapped modules; `weights`: loss -> weight; `zero_null`: see Teacher.encode.

        `channels_last`: how x_t lies in memory; `teacher_graph`: whether the teacher is one CUDA graph.
        """
        self.teacher, self.names, self.weights = teacher, names, weights
        self.global_batch, self.zero_null, self.teacher_graph = global_batch, zero_null, teacher_graph
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.taps = FeatureTaps(teacher.unet, names)

    def __call__(self, student: StudentForward, batch: dict[str, Any], dtype: torch.dtype) -> Losses:
        """Returns the losses of one micro-batch, staged or not; `dtype` is the student's compute type."""
        teacher, device = self.teacher, self.teacher.device
        batch = to_device(batch, device)
        latents, noise = batch["latents"], batch["noise"]
        timesteps = batch["timesteps"].to(device, non_blocking=True)  # [B]
        noised = teacher.add_noise(latents, noise, timesteps).contiguous(memory_format=self.memory_format)
        condition = teacher.encode(batch, batch["null"], self.zero_null)
        with torch.no_grad():  # not inference_mode: the losses keep these tensors for the backward pass
            self.taps.forget()
            if self.teacher_graph:  # what it returned for the last step may be overwritten now
                torch.compiler.cudagraph_mark_step_begin()
            expected = denoise(teacher.unet, noised.to(teacher.dtype), timesteps, condition)
            expected_features = self.taps.collect()
        prediction, features = student(noised.to(dtype), timesteps, cast(condition, dtype))

        outputs = Outputs(
            prediction=prediction,
            teacher=expected,
            features=features,
            teacher_features=expected_features,
            names=self.names,
            target=teacher.target(latents, noise, timesteps),
            latents=latents,
            unreplaced=~batch["replaced"].to(device, non_blocking=True),
            unreplaced_in_batch=batch["unreplaced_in_batch"],
            global_batch=self.global_batch,
        )
        total, terms = weigh(self.weights, outputs)
        per_sample = per_sample_error(prediction.detach(), expected)
        return Losses(total, {name: term.detach() for name, term in terms.items()}, per_sample)
