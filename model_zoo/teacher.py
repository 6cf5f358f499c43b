"""The frozen teacher: an ordinary diffusers folder (SD 1.x, SD 2.x, SDXL) behind one small interface.

In: a local folder or hub id. Out: token ids, conditions, noised latents, prediction targets, sampling pipelines.
Text encoders, tokenizers, noise schedule, prediction type and latent scaling come from the folder's own files.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from randcond.model_zoo.checkpoints.diffusers_folder import (
    FAMILIES,
    compute_dtype,
    freeze,
    loading,
    part_dtypes,
    pipeline_class,
    with_parts,
)
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.checkpoints.hub import local_folder
from randcond.model_zoo.checkpoints.schedule import noise_schedule
from randcond.model_zoo.checkpoints.stored_tensors import StoredTensors
from randcond.model_zoo.checkpoints.teacher_look import check_configurations
from randcond.model_zoo.checkpoints.tokenizers import Tokenizers
from randcond.model_zoo.denoiser.condition import Condition, denoise
from randcond.model_zoo.int8_weights import store_in_int8
from randcond.model_zoo.sampler import build_sampler


@dataclass
class Teacher:
    """Frozen teacher networks in eval mode, with their own noise schedule and tokenizers."""

    pipe: Any  # a StableDiffusionPipeline or StableDiffusionXLPipeline
    folder: Path
    dtype: torch.dtype  # that it computes in
    schedule: DDPMScheduler
    remark: str = ""  # a line for the log
    latent_side: int | None = None  # set if the training latents differ in size from the U-Net's sample_size

    @classmethod
    def load(cls, path: Path, dtype: str = "bf16", device: str | torch.device = "cpu") -> "Teacher":
        """Loads a diffusers folder or hub id, safetensors only.

        With the dtype int8, the U-Net and the text encoders store their weights in 8 bits, and compute in bf16.
        Raises UserError naming the folder if it is missing, or file and key if it does not suit a teacher.
        """
        folder = local_folder(path)
        check_configurations(folder)
        family = pipeline_class(folder)
        with loading(folder):
            pipe = family.from_pretrained(
                folder, dtype=part_dtypes(folder, dtype), use_safetensors=True, **FAMILIES[family]
            )
        schedule = noise_schedule(pipe.scheduler, folder)
        freeze(pipe, device)
        teacher = cls(pipe, folder, compute_dtype(dtype), schedule)
        if dtype == "int8":
            teacher.remark = teacher._store_in_int8()
        return teacher

    def _store_in_int8(self) -> str:
        """Stores the weights in 8 bits. Returns a line for the log with the error of the predictions."""
        before = self.probe()
        counts = [store_in_int8(network) for network in (self.unet, *self.text_encoders)]
        taken, layers = (sum(each) for each in zip(*counts, strict=True))
        return (
            f"teacher in int8: {taken} of {layers} linear layers and convolutions, which changes its predictions by "
            f"{(self.probe() - before).norm() / before.norm():.2%}"
        )

    @property
    def unet(self) -> UNet2DConditionModel:
        """The teacher's denoiser."""
        return self.pipe.unet

    @property
    def device(self) -> torch.device:
        """The device of the teacher's weights."""
        return self.pipe.unet.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one latent."""
        size = self.latent_side or self.pipe.unet.config.sample_size
        return self.pipe.unet.config.in_channels, size, size

    @property
    def resolution(self) -> int:
        """Side length of an image in pixels."""
        return self.latent_shape[1] * self.pipe.vae_scale_factor

    @property
    def timesteps(self) -> int:
        """T, the length of the noise schedule."""
        return self.schedule.config.num_train_timesteps

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the configuration and weight files that determine the teacher's images."""
        return folder_fingerprint(self.folder)

    @property
    def text_encoders(self) -> list[nn.Module]:
        """One text encoder, or SDXL's two."""
        return [network for name in ("text_encoder", "text_encoder_2") if (network := getattr(self.pipe, name, None))]

    @cached_property
    def tokenizers(self) -> Tokenizers:
        """The tokenizers, in the order of the text encoders."""
        found = [t for name in ("tokenizer", "tokenizer_2") if (t := getattr(self.pipe, name, None))]
        return Tokenizers(found, str(self.folder))

    @cached_property
    def _time_ids(self) -> Tensor:
        """SDXL's time_ids [6], in pixels, of an uncropped image of the size that `latent_shape` decodes to."""
        height, width = (side * self.pipe.vae_scale_factor for side in self.latent_shape[1:])
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def encode(self, token_ids: dict[str, Tensor], null: Tensor | None = None, zeros: bool = True) -> Condition:
        """Encodes token ids to the U-Net's condition, in the teacher's dtype.

        token_ids: the output of `tokenizers`, [B, L] per text encoder. Other keys are ignored.
        null: bool [B], True for null captions. If the teacher's own pipeline uses zeros for them
            (`force_zeros_for_empty_prompt`) and `zeros` is True, their text and pooled embeddings are set to zero.
        Returns `encoder_hidden_states` [B, L, width]. SDXL also has `text_embeds` [B, P] and `time_ids` [B, 6].
        For SDXL, the hidden states are the penultimate ones of both encoders, concatenated along the width, and
        `text_embeds` is the pooled embedding of the second encoder.
        """
        hidden, pooled = [], None
        wants_pooled = self.unet.config.addition_embed_type == "text_time"
        for encoder, key in zip(self.text_encoders, ("token_ids", "token_ids_2"), strict=False):
            ids = token_ids[key].to(
                self.device, non_blocking=True
            )  # a blocking copy would wait for all queued GPU work
            out = encoder(ids, output_hidden_states=wants_pooled)
            hidden.append(out.hidden_states[-2] if wants_pooled else out.last_hidden_state)
            pooled = getattr(out, "text_embeds", None)
        condition = {"encoder_hidden_states": torch.cat(hidden, dim=-1)}  # [B, L, width]
        if wants_pooled:
            assert pooled is not None
            condition |= {"text_embeds": pooled, "time_ids": self._time_ids.repeat(len(pooled), 1)}
        if null is not None and zeros and self.pipe.config.get("force_zeros_for_empty_prompt", False):
            keep = ~null.to(self.device, non_blocking=True)
            condition["encoder_hidden_states"] = condition["encoder_hidden_states"] * keep[:, None, None]
            condition["text_embeds"] = condition["text_embeds"] * keep[:, None]
        return condition

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Returns predictions on noise with the null caption at three timesteps [3, C, h, w], fp32.

        They are compared before and after a change of the networks.
        """
        steps = torch.tensor([self.timesteps * tenth // 10 for tenth in (1, 5, 9)], device=self.device)
        noised = torch.randn(len(steps), *self.latent_shape, generator=torch.Generator().manual_seed(0))
        condition = self.encode(self.tokenizers([""] * len(steps)))
        return denoise(self.unet, noised.to(self.device, self.dtype), steps, condition).float()

    def stored_unet(self) -> "StoredTensors":
        """Returns the U-Net's weights as stored in the folder, not rounded to the teacher's compute dtype."""
        return StoredTensors(self.folder / "unet")

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps [B, C, h, w].

        latents (x_0) and noise (eps): [B, C, h, w]. timesteps: integers [B] in 0 .. T - 1.
        """
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns the target [B, C, h, w] of the teacher's prediction type.

        The target is epsilon, v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, or x_0.
        latents (x_0) and noise (eps): [B, C, h, w]. timesteps: integers [B] in 0 .. T - 1.
        """
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, timesteps)
        return noise if kind == "epsilon" else latents

    def pipeline(self, sampler: str, unet: nn.Module | None = None) -> Any:
        """Returns a pipeline with the named sampler, on the teacher's U-Net or on `unet`.

        Samplers such as "ddim" use the teacher's own scheduler config (paper, supplement K). The sampler "teacher" is
        the one that the teacher ships with.
        """
        unet = self.pipe.unet if unet is None else unet
        pipe = with_parts(self.pipe, scheduler=build_sampler(sampler, self.pipe.scheduler), unet=unet)
        pipe.set_progress_bar_config(disable=True)
        return pipe
