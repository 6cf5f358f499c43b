"""The frozen teacher: an ordinary diffusers Stable-Diffusion folder behind one small interface.

In: a local folder or hub id. Out: captions -> token ids -> condition, noised latents, predictions, a pipeline to draw.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from torch import Tensor, nn

logging.disable_progress_bar()  # ours says what takes long
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Teacher:
    """Frozen teacher networks in eval mode and what their own configurations say of noise and captions."""

    pipe: StableDiffusionPipeline
    folder: Path
    dtype: torch.dtype
    schedule: DDPMScheduler

    @classmethod
    def load(cls, path: Path, dtype: str = "bf16", device: str | torch.device = "cpu") -> "Teacher":
        """Loads the diffusers folder, safetensors only.

        Raises FileNotFoundError naming the folder when it is not there, ValueError when it is not a teacher
        of this kind (its denoiser must be a text-conditioned U-Net that predicts epsilon).
        """
        folder = local_folder(path)
        pipe = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
        ).to(device)
        for network in (pipe.unet, pipe.vae, pipe.text_encoder):
            network.eval().requires_grad_(False)
        pipe.set_progress_bar_config(disable=True)
        schedule = DDPMScheduler.from_config(pipe.scheduler.config)
        if schedule.config.prediction_type != "epsilon":
            raise ValueError(f"{folder}: predicts {schedule.config.prediction_type}; only epsilon teachers work yet")
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
        size = self.pipe.unet.config.sample_size
        return self.pipe.unet.config.in_channels, size, size

    @property
    def timesteps(self) -> int:
        """T, the length of the noise schedule."""
        return self.schedule.config.num_train_timesteps

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every configuration and weight file: two teachers that draw alike have the same one."""
        return folder_fingerprint(self.folder)

    @torch.no_grad()
    def encode(self, token_ids: Tensor) -> Tensor:
        """Encodes token ids [B, L] -> condition [B, L, width] in the teacher's dtype."""
        return self.pipe.text_encoder(token_ids.to(self.device)).last_hidden_state

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps; latents and noise [B, C, h, w], timesteps [B]."""
        return self.schedule.add_noise(latents, noise, timesteps)

    def pipeline(self, sampler: str, unet: nn.Module | None = None) -> StableDiffusionPipeline:
        """A pipeline on the teacher's (or another) U-Net with the named sampler.

        "ddim" is built from the teacher's own scheduler config (paper, supplement K); "teacher" is the one it ships.
        """
        schedulers: dict[str, Any] = {
            "ddim": DDIMScheduler.from_config,
            "teacher": type(self.pipe.scheduler).from_config,
        }
        pipe = StableDiffusionPipeline(
            vae=self.pipe.vae,
            text_encoder=self.pipe.text_encoder,
            tokenizer=self.pipe.tokenizer,
            unet=self.pipe.unet if unet is None else unet,
            scheduler=schedulers[sampler](self.pipe.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """Captions -> token ids [B, L], padded and truncated to the tokenizer's own length."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def local_folder(path: Path | str) -> Path:
    """The teacher's folder on this machine, downloaded from the hub when `path` is a hub id (owner/name).

    Raises FileNotFoundError when neither has a model_index.json, saying where it was looked for.
    """
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists() or len(folder.parts) != 2 or str(path).startswith(("/", ".")):
        raise FileNotFoundError(
            f"no teacher at {path}: a diffusers folder with a model_index.json, or a hub id (owner/name), is needed"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors"]
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"no teacher at {path}: there is no such folder, and the hub did not give it ({type(error).__name__})"
        ) from None


def folder_fingerprint(folder: Path) -> str:
    """sha256 over names and contents of a model's configurations and weights (16 hex digits); cards don't count."""
    digest = hashlib.sha256()
    parts = [path for path in folder.glob("*/*") if path.suffix in {".json", ".txt", ".safetensors"}]
    for path in sorted([*parts, folder / "model_index.json", *folder.glob("*.safetensors")]):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
