"""The distillation step: encodes captions, adds noise to latents, runs teacher and student, computes the losses."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from randcond.data.stream.batch import Batch
from randcond.model_zoo.denoiser.forward import cast, denoise
from randcond.model_zoo.families.base.family import Condition
from randcond.model_zoo.students.features import FeatureTaps
from randcond.model_zoo.teacher import Teacher
from randcond.train.losses import Outputs, per_sample_error, weigh

# (noised latents [B, C, h, w], timesteps [B], condition) -> (prediction [B, C, h, w], features)
StudentForward = Callable[[Tensor, Tensor, Condition], tuple[Tensor, list[Tensor]]]


@dataclass
class Losses:
    """The losses of one micro-batch, fp32: the total that is trained on, its named terms, and Eq. 1 per sample."""

    total: Tensor  # scalar, with gradient
    terms: dict[str, Tensor]  # name -> scalar, detached
    per_sample: Tensor  # [B], detached


def draw_noise(seeds: Tensor, like: Tensor) -> Tensor:
    """Draws standard normal noise [B, C, h, w], fp32, on the device of `like` [B, C, h, w].

    `seeds` [B], int64: sample i is drawn with seed i. The noise is drawn on the CPU, so that it is the same on every
    machine. The loader processes don't draw it, because they would have to transfer three times as many bytes.
    """
    noise = torch.empty(like.shape, pin_memory=like.device.type == "cuda")
    generator = torch.Generator()
    for sample, seed in zip(noise, seeds.tolist(), strict=True):
        sample.normal_(generator=generator.manual_seed(seed))
    return noise.to(like.device, non_blocking=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns a batch of the stream with `latents` and `noise` on the device, both [B, C, h, w] in fp32.

    Returns the batch itself if it has its noise already.
    """
    if batch.noise is not None:
        return batch
    latents = batch.latents.to(device, non_blocking=True).float()
    return replace(batch, latents=latents, noise=draw_noise(batch.noise_seed, latents))


class DistillationStep:
    """Computes the losses of a micro-batch. Holds the frozen teacher and its feature taps."""

    def __init__(
        self,
        teacher: Teacher,
        names: list[str],
        weights: dict[str, float],
        global_batch: int,
        zero_null: bool = True,
        channels_last: bool = False,
        teacher_graph: bool = False,
        feature_variant: str = "plain",
    ) -> None:
        """Adds the feature taps to the teacher.

        `names`: the modules of the teacher to tap; `weights`: loss name -> weight; `global_batch`: in samples;
        `zero_null`: the argument `zeros` of Teacher.encode; `channels_last`: the memory format of x_t;
        `teacher_graph`: the teacher runs as one CUDA graph; `feature_variant`: train.feature_loss.
        """
        self.teacher, self.names, self.weights = teacher, names, weights
        self.global_batch, self.zero_null, self.teacher_graph = global_batch, zero_null, teacher_graph
        self.feature_variant = feature_variant
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.taps = FeatureTaps(teacher.denoiser, names)

    def encode(self, batch: Batch) -> Condition:
        """Returns the condition of a micro-batch, on the teacher's device."""
        return self.teacher.encode(batch.token_ids, batch.null, self.zero_null)

    def __call__(self, student: StudentForward, batch: Batch, dtype: torch.dtype) -> Losses:
        """Returns the losses of one micro-batch.

        `student`: the forward of the engine; `batch`: from the stream, before or after `to_device`; `dtype`: the dtype
        in which the student computes.
        """
        teacher, device = self.teacher, self.teacher.device
        batch = to_device(batch, device)
        latents, noise = batch.latents, batch.noise
        assert noise is not None
        timesteps = batch.timesteps.to(device, non_blocking=True)  # [B]
        noised = teacher.add_noise(latents, noise, timesteps).contiguous(memory_format=self.memory_format)
        condition = self.encode(batch) if batch.condition is None else batch.condition
        with torch.no_grad():  # not inference_mode: the losses keep these tensors for the backward pass
            self.taps.forget()
            if self.teacher_graph:  # allows the graph to overwrite its outputs of the previous step
                torch.compiler.cudagraph_mark_step_begin()
            expected = denoise(teacher.denoiser, noised.to(teacher.dtype), timesteps, condition)
            expected_features = self.taps.collect()
        prediction, features = student(noised.to(dtype), timesteps, cast(teacher.family, condition, dtype))

        outputs = Outputs(
            prediction=prediction,
            teacher=expected,
            features=features,
            teacher_features=expected_features,
            names=self.names,
            target=teacher.target(latents, noise, timesteps),
            latents=latents,
            unreplaced=~batch.replaced.to(device, non_blocking=True),
            unreplaced_in_batch=batch.unreplaced_in_batch,
            global_batch=self.global_batch,
            feature_variant=self.feature_variant,
        )
        total, terms = weigh(self.weights, outputs)
        per_sample = per_sample_error(prediction.detach(), expected)
        return Losses(total, {name: term.detach() for name, term in terms.items()}, per_sample)
