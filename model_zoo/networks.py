"""A teacher's networks by their configurations alone: sizes before anything is downloaded or loaded.

In: a layout's name, a hub id, or a diffusers folder. Out: configurations of U-Net, text encoders and VAE.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextConfig

from randcond.model_zoo.layouts import HUB, LAYOUTS, TEXT_ENCODERS, VAE, text_config
from randcond.model_zoo.students import UNetConfig, complete_config
from randcond.model_zoo.teacher import unet_config


@dataclass(frozen=True)
class Networks:
    """The configurations of a teacher's networks."""

    unet: UNetConfig
    text_encoders: list[dict[str, Any]]  # one, or SDXL's two; CLIPTextConfig
    vae: dict[str, Any]  # AutoencoderKL


def layout_of(name: Path | str) -> str | None:
    """The published layout that a name or hub id stands for."""
    found = HUB.get(str(name), str(name))
    return found if found in LAYOUTS else None


def unet_of(name: Path | str) -> UNetConfig:
    """A teacher's complete U-Net configuration, by layout name, folder or hub id.

    Raises ValueError listing the names when there is none.
    """
    if layout := layout_of(name):
        return complete_config(LAYOUTS[layout])
    try:
        return unet_config(name)
    except FileNotFoundError as error:
        raise ValueError(f"teacher: none of {', '.join(LAYOUTS)}, and {error}") from None


def networks_of(name: Path | str) -> Networks:
    """All of a teacher's configurations; raises ValueError as `unet_of` does."""
    unet = unet_of(name)
    if layout := layout_of(name):
        return Networks(unet, [text_config(sizes) for sizes in TEXT_ENCODERS[layout]], VAE)
    parts = DiffusionPipeline.load_config(str(name))
    text = [part for part in ("text_encoder", "text_encoder_2") if part in parts]
    configs = [CLIPTextConfig.from_pretrained(str(name), subfolder=part).to_dict() for part in text]
    return Networks(unet, configs, dict(AutoencoderKL.load_config(str(name), subfolder="vae")))
