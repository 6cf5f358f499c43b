"""The frozen teacher: an ordinary diffusers folder (SD 1.x, SD 2.x, SDXL) behind one small interface.

In: a local folder or hub id. Out: captions -> token ids -> condition, noised latents, predictions, a pipeline to draw.
Which text encoders, tokenizers, schedule, prediction type and latent scaling: all read from the folder's own files.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from randcond.model_zoo.condition import Condition
from randcond.model_zoo.sampler import build_sampler
from randcond.model_zoo.students import UNetConfig, complete_config

logging.disable_progress_bar()  # ours says what takes long
transformers_logging.disable_progress_bar()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Pipeline class -> its options that are no part of the model.
FAMILIES: dict[type[DiffusionPipeline], dict[str, Any]] = {
    StableDiffusionPipeline: {"safety_checker": None, "requires_safety_checker": False},
    StableDiffusionXLPipeline: {"add_watermarker": False},
}


class Tokenizers:
    """Captions -> token ids per text encoder: {"token_ids": [B, L], "token_ids_2": [B, L]} (the second: SDXL)."""

    def __init__(self, tokenizers: list[Any]) -> None:
        """`tokenizers`: transformers' own; each gives its backend, a copy, which takes half the time of calling it."""
        self._parts = []
        for tokenizer in tokenizers:
            assert tokenizer.padding_side == "right", "padded on the left"
            backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
            backend.enable_truncation(tokenizer.model_max_length)
            backend.no_padding()
            self._parts.append((backend, tokenizer.model_max_length, tokenizer.pad_token_id))

    def __call__(self, captions: list[str]) -> dict[str, Tensor]:
        """Pads and truncates to each tokenizer's own length."""
        encoded = {}
        for key, (backend, length, padding) in zip(("token_ids", "token_ids_2"), self._parts, strict=False):
            ids = np.full((len(captions), length), padding, dtype=np.int64)
            for row, encoding in zip(ids, backend.encode_batch_fast(captions), strict=True):
                tokens = encoding.ids
                row[: len(tokens)] = tokens
            encoded[key] = torch.from_numpy(ids)
        return encoded


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

        Raises FileNotFoundError naming the folder when it is not there, ValueError when it is not a teacher
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


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a model folder by name, read from its safetensors (one file or shards) one at a time."""

    def __init__(self, folder: Path) -> None:
        files = [path for path in sorted(folder.glob("*.safetensors")) if len(path.suffixes) == 1]
        opened = [safe_open(path, framework="pt") for path in files]
        self._files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (not a dict)

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def check_weights(folder: Path) -> None:
    """Raises ValueError naming a weight file of a pipeline that is cut off or damaged: its loaders don't name it."""
    for path in (path for path in sorted(folder.glob("*/*.safetensors")) if len(path.suffixes) == 1):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); fetch or copy it again") from None


def part_dtypes(folder: Path, dtype: str) -> dict[str, torch.dtype]:
    """The types of a pipeline's parts: all in `dtype`, but an autoencoder that asks for more in fp32."""
    # Most autoencoders overflow, or show their rounding, in 16 bits; diffusers takes an unset flag for set.
    upcast = json.loads((folder / "vae" / "config.json").read_text()).get("force_upcast", True)
    return {"default": DTYPES[dtype], "vae": torch.float32 if upcast else DTYPES[dtype]}


def with_parts(pipe: Any, **parts: Any) -> Any:
    """A pipeline of the same family and options on some other parts."""
    kept = {key: pipe.config[key] for key in ("force_zeros_for_empty_prompt",) if key in pipe.config}
    return type(pipe)(**{**pipe.components, **kept, **parts, **FAMILIES[type(pipe)]})


def pipeline_class(folder: Path) -> type[DiffusionPipeline]:
    """The pipeline a diffusers folder is made for; raises ValueError naming the known ones."""
    name = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    for family in FAMILIES:
        if family.__name__ == name:
            return family
    raise ValueError(f"{folder}: is a {name}; a teacher is one of {', '.join(f.__name__ for f in FAMILIES)}")


def check_unet(unet: Any, folder: Path) -> None:
    """Raises ValueError naming what a U-Net takes or gives that a text-to-image teacher of ours does not."""
    odd = {
        "out_channels": unet["in_channels"],
        "class_embed_type": None,
        "encoder_hid_dim_type": None,
        "time_cond_proj_dim": None,
        "addition_embed_type": "text_time" if unet.get("addition_embed_type") == "text_time" else None,
    }
    for key, wanted in odd.items():
        if unet.get(key) != wanted:
            raise ValueError(
                f"{folder}: unet/config.json has {key} {unet.get(key)!r}, a teacher needs {wanted!r}: "
                f"it must predict x_t's own channels from text alone"
            )


def noise_schedule(scheduler: dict[str, Any], folder: Path) -> DDPMScheduler:
    """The DDPM schedule q(x_t | x_0) that a folder's scheduler config describes.

    Raises ValueError for schedulers without a discrete one (EDM, flow matching) and unknown prediction types.
    """
    missing = {"num_train_timesteps", "beta_schedule"} - scheduler.keys()
    if missing:
        raise ValueError(
            f"{folder}: scheduler_config.json ({scheduler.get('_class_name')}) has no {', '.join(sorted(missing))}; "
            f"a teacher needs a discrete beta schedule (DDPM, DDIM, PNDM, Euler, ...)"
        )
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"{folder}: scheduler_config.json predicts {kind!r}; known: epsilon, v_prediction, sample")
    return DDPMScheduler.from_config(scheduler)


def unet_config(path: Path | str) -> UNetConfig:
    """A teacher's complete U-Net configuration; of a hub id, that one file is fetched.

    Raises FileNotFoundError as `local_folder` does.
    """
    if is_hub_id(path):
        try:
            return complete_config(UNet2DConditionModel.load_config(str(path), subfolder="unet"))
        except (OSError, ValueError) as error:
            raise _not_on_hub(path, error) from None
    return complete_config(UNet2DConditionModel.load_config(local_folder(path) / "unet"))


def is_hub_id(path: Path | str) -> bool:
    """Whether a path is owner/name and nothing on this machine."""
    return not Path(path).exists() and len(Path(path).parts) == 2 and not str(path).startswith(("/", "."))


def _not_on_hub(path: Path | str, error: Exception) -> FileNotFoundError:
    said = str(error).splitlines()[0] if str(error) else ""
    return FileNotFoundError(
        f"no teacher at {path}: there is no such folder, and the hub did not give it ({type(error).__name__}: {said})"
    )


def local_folder(path: Path | str) -> Path:
    """The teacher's folder on this machine, downloaded from the hub when `path` is a hub id (owner/name).

    Raises FileNotFoundError when neither has a model_index.json, saying where it was looked for.
    """
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        return folder
    if not is_hub_id(path):
        raise FileNotFoundError(
            f"no teacher at {path}: a diffusers folder with a model_index.json, or a hub id (owner/name), is needed"
        )
    try:  # what the pipeline needs and nothing else: no other precisions, no pickles, no code
        return Path(DiffusionPipeline.download(str(path), use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        raise _not_on_hub(path, error) from None


def folder_fingerprint(folder: Path) -> str:
    """sha256 over names and contents of a model's configurations and weights (16 hex digits).

    Cards, safety checkers and copies in another precision don't count: they change nothing that is drawn.
    """
    digest = hashlib.sha256()
    parts = [path for path in folder.glob("*/*") if path.suffix in {".json", ".txt", ".safetensors"}]
    for path in sorted([*parts, folder / "model_index.json", *folder.glob("*.safetensors")]):
        unused = path.parent.name in {"safety_checker", "feature_extractor"} or re.search(
            r"\.(fp16|bf16|non_ema)[.-]", path.name
        )
        if path.is_file() and not unused:
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
