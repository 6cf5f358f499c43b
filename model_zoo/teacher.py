"""The frozen teacher: an ordinary diffusers folder (SD 1.x, SD 2.x, SDXL) behind one small interface.

In: a local folder or hub id. Out: captions -> token ids -> condition, noised latents, predictions, a pipeline to draw.
Which text encoders, tokenizers, schedule, prediction type and latent scaling: all read from the folder's own files.
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

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.condition import Condition
from randcond.model_zoo.diffusers_folder import DTYPES, FAMILIES, check_weights, part_dtypes, pipeline_class, with_parts
from randcond.model_zoo.fingerprint import folder_fingerprint
from randcond.model_zoo.hub import local_folder
from randcond.model_zoo.sampler import build_sampler
from randcond.model_zoo.stored_tensors import StoredTensors
from randcond.model_zoo.tokenizers import Tokenizers


@dataclass
class Teacher:
    """Frozen teacher networks in eval mode and what their own configurations say of noise and captions."""

    pipe: Any  # a StableDiffusionPipeline or StableDiffusionXLPipeline
    folder: Path
    dtype: torch.dtype
    schedule: DDPMScheduler
    latent_side: int | None = None  # of the latents it is shown, where these are of real images of another size

    @classmethod
    def load(cls, path: Path, dtype: str = "bf16", device: str | torch.device = "cpu") -> "Teacher":
        """Loads the diffusers folder, safetensors only.

        Raises UserError naming the folder when it is not there, ValueError when it is not a teacher
        of a known family or its U-Net or noise schedule is of another kind.
        """
        folder = local_folder(path)
        family = pipeline_class(folder)
        check_weights(folder)
        pipe = family.from_pretrained(
            folder, dtype=part_dtypes(folder, dtype), use_safetensors=True, **FAMILIES[family]
        )
        check_unet(pipe.unet.config, folder)
        schedule = noise_schedule(dict(pipe.scheduler.config), folder)
        for network in pipe.components.values():
            if isinstance(network, nn.Module):
                network.to(device).eval().requires_grad_(False)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, folder, DTYPES[dtype], schedule)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The teacher's denoiser."""
        return self.pipe.unet

    @property
    def device(self) -> torch.device:
        """Where the teacher's weights are."""
        return self.pipe.unet.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one latent."""
        size = self.latent_side or self.pipe.unet.config.sample_size
        return self.pipe.unet.config.in_channels, size, size

    @property
    def resolution(self) -> int:
        """Pixels of an image's side."""
        return self.latent_shape[1] * self.pipe.vae_scale_factor

    @property
    def timesteps(self) -> int:
        """T, the length of the noise schedule."""
        return self.schedule.config.num_train_timesteps

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every configuration and weight file: two teachers that draw alike have the same one."""
        return folder_fingerprint(self.folder)

    @property
    def text_encoders(self) -> list[nn.Module]:
        """One text encoder, or SDXL's two."""
        return [network for name in ("text_encoder", "text_encoder_2") if (network := getattr(self.pipe, name, None))]

    @cached_property
    def tokenizers(self) -> Tokenizers:
        """The tokenizers of the text encoders, in their order."""
        return Tokenizers([t for name in ("tokenizer", "tokenizer_2") if (t := getattr(self.pipe, name, None))])

    @cached_property
    def _sizes(self) -> Tensor:
        """SDXL's time_ids [6] of an image that is as large as the latents say, not cropped."""
        height, width = (side * self.pipe.vae_scale_factor for side in self.latent_shape[1:])
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def encode(self, token_ids: dict[str, Tensor], null: Tensor | None = None, zeros: bool = True) -> Condition:
        """Encodes what `tokenizers` gave (other keys are ignored) -> the U-Net's condition, in the teacher's dtype.

        SDXL: penultimate hidden states of both encoders side by side, the second's pooled embedding, time_ids.
        Where `null` [B] is set, and the teacher's own pipeline uses zeros for the unconditional
        (`force_zeros_for_empty_prompt`), text and pooled embedding are zeros; not with `zeros` off.
        """
        hidden, pooled = [], None
        wants_pooled = self.unet.config.addition_embed_type == "text_time"
        for encoder, key in zip(self.text_encoders, ("token_ids", "token_ids_2"), strict=False):
            ids = token_ids[key].to(self.device, non_blocking=True)  # else the host waits for all that is queued
            out = encoder(ids, output_hidden_states=wants_pooled)
            hidden.append(out.hidden_states[-2] if wants_pooled else out.last_hidden_state)
            pooled = getattr(out, "text_embeds", None)
        condition = {"encoder_hidden_states": torch.cat(hidden, dim=-1)}  # [B, L, width]
        if wants_pooled:
            assert pooled is not None
            condition |= {"text_embeds": pooled, "time_ids": self._sizes.repeat(len(pooled), 1)}
        if null is not None and zeros and self.pipe.config.get("force_zeros_for_empty_prompt", False):
            keep = ~null.to(self.device, non_blocking=True)
            condition["encoder_hidden_states"] = condition["encoder_hidden_states"] * keep[:, None, None]
            condition["text_embeds"] = condition["text_embeds"] * keep[:, None]
        return condition

    def stored_unet(self) -> "StoredTensors":
        """The U-Net's weights as the folder holds them, not rounded to the teacher's compute type."""
        return StoredTensors(self.folder / "unet")

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps; latents and noise [B, C, h, w], timesteps [B]."""
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect network would predict: epsilon, v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, or x_0."""
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, timesteps)
        return noise if kind == "epsilon" else latents

    def pipeline(self, sampler: str, unet: nn.Module | None = None) -> Any:
        """A pipeline on the teacher's (or another) U-Net with the named sampler.

        "ddim" is built from the teacher's own scheduler config (paper, supplement K); "teacher" is the one it ships.
        """
        unet = self.pipe.unet if unet is None else unet
        pipe = with_parts(self.pipe, scheduler=build_sampler(sampler, self.pipe.scheduler), unet=unet)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def check_unet(unet: Any, folder: Path) -> None:
    """Raises UserError naming what a U-Net takes or gives that a text-to-image teacher of ours does not."""
    odd = {
        "out_channels": unet["in_channels"],
        "class_embed_type": None,
        "encoder_hid_dim_type": None,
        "time_cond_proj_dim": None,
        "addition_embed_type": "text_time" if unet.get("addition_embed_type") == "text_time" else None,
    }
    for key, wanted in odd.items():
        if unet.get(key) != wanted:
            raise UserError(
                f"{folder}: unet/config.json has {key} {unet.get(key)!r}, a teacher needs {wanted!r}: "
                f"it must predict x_t's own channels from text alone"
            )


def noise_schedule(scheduler: dict[str, Any], folder: Path) -> DDPMScheduler:
    """The DDPM schedule q(x_t | x_0) that a folder's scheduler config describes.

    Raises UserError for schedulers without a discrete one (EDM, flow matching) and unknown prediction types.
    """
    missing = {"num_train_timesteps", "beta_schedule"} - scheduler.keys()
    if missing:
        raise UserError(
            f"{folder}: scheduler_config.json ({scheduler.get('_class_name')}) has no {', '.join(sorted(missing))}; "
            f"a teacher needs a discrete beta schedule (DDPM, DDIM, PNDM, Euler, ...)"
        )
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"{folder}: scheduler_config.json predicts {kind!r}; known: epsilon, v_prediction, sample")
    return DDPMScheduler.from_config(scheduler)
