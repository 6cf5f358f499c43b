"""The frozen teacher: an ordinary diffusers folder of a known family, behind one small interface.

In: a local folder or hub id. Out: token ids, conditions, noised latents, prediction targets, sampling pipelines.
Text encoders, tokenizers, noise schedule, prediction type and latent scaling come from the folder's own files.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randcond.model_zoo.checkpoints.diffusers_folder import compute_dtype, freeze, loading, part_dtypes
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.checkpoints.hub import local_folder
from randcond.model_zoo.checkpoints.schedule import process_of
from randcond.model_zoo.checkpoints.stored_tensors import StoredTensors
from randcond.model_zoo.checkpoints.tokenizers import Tokenizers
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.families.base.family import Condition, Family
from randcond.model_zoo.families.faults.look import check_configurations
from randcond.model_zoo.families.registry import load_options, pipeline_of, pixels_per_latent, with_parts
from randcond.model_zoo.int8_weights import store_in_int8
from randcond.model_zoo.process.process import Process
from randcond.model_zoo.sampler import build_sampler


@dataclass
class Teacher:
    """Frozen teacher networks in eval mode, with their own process and tokenizers."""

    pipe: Any  # a pipeline of the family
    folder: Path
    dtype: torch.dtype  # that it computes in
    family: Family
    process: Process
    text_tokens: int | None = None  # length of the text, where the pipeline leaves it open; None: its default
    remark: str = ""  # a line for the log
    latent_side: int | None = None  # set if the training latents differ in size from those of the denoiser

    @classmethod
    def load(
        cls, path: Path, dtype: str = "bf16", device: str | torch.device = "cpu", text_tokens: int | None = None
    ) -> "Teacher":
        """Loads a diffusers folder or hub id, safetensors only.

        With the dtype int8, the denoiser and the text encoders store their weights in 8 bits, and compute in bf16.
        text_tokens: the setting `teacher.text_tokens`.
        Raises UserError naming the folder if it is missing, or file and key if it does not suit a teacher.
        """
        folder = local_folder(path)
        check_configurations(folder)
        pipeline, family = pipeline_of(folder)
        with loading(folder):
            pipe = pipeline.from_pretrained(
                folder, dtype=part_dtypes(folder, dtype), use_safetensors=True, **load_options(folder)
            )
        family.loaded(pipe)
        process = process_of(pipe.scheduler, folder, family.flow)
        freeze(pipe, device)
        teacher = cls(pipe, folder, compute_dtype(dtype), family, process, text_tokens)
        if dtype == "int8":
            teacher.remark = teacher._store_in_int8()
        return teacher

    def _store_in_int8(self) -> str:
        """Stores the weights in 8 bits. Returns a line for the log with the error of the predictions."""
        before = self.probe()
        counts = [store_in_int8(network) for network in (self.denoiser, *self.text_encoders)]
        taken, layers = (sum(each) for each in zip(*counts, strict=True))
        return (
            f"teacher in int8: {taken} of {layers} linear layers and convolutions, which changes its predictions by "
            f"{(self.probe() - before).norm() / before.norm():.2%}"
        )

    @property
    def denoiser(self) -> Any:
        """The teacher's denoiser."""
        return getattr(self.pipe, self.family.part)

    @cached_property  # every step's encode() needs it
    def architecture(self) -> Architecture:
        """The class and configuration of the denoiser, as it was made."""
        return Architecture.of(self.denoiser)

    @property
    def device(self) -> torch.device:
        """The device of the teacher's weights."""
        return self.denoiser.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one latent."""
        channels, *sides = self.architecture.latent_shape
        height, width = [self.latent_side] * 2 if self.latent_side else sides
        return channels, height, width

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along a side of an image per position of a latent."""
        return pixels_per_latent(self.pipe)

    @property
    def resolution(self) -> int:
        """Side length of an image in pixels."""
        return self.latent_shape[1] * self.pixels_per_latent

    @property
    def timesteps(self) -> int:
        """T, the length of the schedule."""
        return self.process.timesteps

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the configuration and weight files that determine the teacher's images."""
        return folder_fingerprint(self.folder)

    @property
    def text_encoders(self) -> list[nn.Module]:
        """The text encoders, one or several."""
        return [getattr(self.pipe, part.encoder) for part in self.family.text_parts(self.pipe)]

    @cached_property
    def tokenizers(self) -> Tokenizers:
        """The tokenizers, in the order of the text encoders."""
        parts = self.family.text_parts(self.pipe)
        found = [getattr(self.pipe, part.tokenizer) for part in parts]
        lengths = self.family.lengths(self.pipe, self.text_tokens)
        return Tokenizers(found, str(self.folder), lengths, [part.prepare for part in parts])

    @torch.no_grad()
    def encode(self, token_ids: dict[str, Tensor], null: Tensor | None = None, zeros: bool = True) -> Condition:
        """Encodes token ids to the denoiser's condition, in the teacher's dtype.

        token_ids: the output of `tokenizers`, [B, L] per text encoder. Other keys are ignored.
        null: bool [B], True for null captions. If the teacher's own pipeline uses another input than the encoding of
            "" for them (SDXL: zeros) and `zeros` is True, they get that.
        """
        # A blocking copy would wait for all queued GPU work.
        ids = [token_ids[part.ids].to(self.device, non_blocking=True) for part in self.family.text_parts(self.pipe)]
        own_null = null.to(self.device, non_blocking=True) if null is not None and zeros else None
        height, width = (side * self.pixels_per_latent for side in self.latent_shape[1:])
        return self.family.encode(self.pipe, ids, own_null, (height, width), self.text_tokens)

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Returns predictions on noise with the null caption at three timesteps [3, C, h, w], fp32.

        They are compared before and after a change of the networks.
        """
        steps = torch.tensor([self.timesteps * tenth // 10 for tenth in (1, 5, 9)], device=self.device)
        noised = torch.randn(len(steps), *self.latent_shape, generator=torch.Generator().manual_seed(0))
        condition = self.encode(self.tokenizers([""] * len(steps)))
        return denoise(self.denoiser, noised.to(self.device, self.dtype), steps, condition).float()

    def stored_denoiser(self) -> StoredTensors:
        """Returns the denoiser's weights as stored in the folder, not rounded to the teacher's compute dtype."""
        return StoredTensors(self.folder / self.family.part)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns x_t [B, C, h, w] by the teacher's process.

        latents (x_0) and noise (eps): [B, C, h, w]. timesteps: t [B].
        """
        return self.process.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns what the teacher predicts [B, C, h, w], by its process. The arguments are those of add_noise()."""
        return self.process.target(latents, noise, timesteps)

    def pipeline(self, sampler: str, denoiser: nn.Module | None = None) -> Any:
        """Returns a pipeline with the named sampler, on the teacher's denoiser or on `denoiser`.

        Samplers such as "ddim" use the teacher's own scheduler config (paper, supplement K). The sampler "teacher" is
        the one that the teacher ships with.
        """
        network = self.denoiser if denoiser is None else denoiser
        parts = {"scheduler": build_sampler(sampler, self.pipe.scheduler), self.family.part: network}
        pipe = with_parts(self.pipe, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe
