"""Configurations of a teacher's networks, without its weights.

In: the name of a published teacher, a hub id, or a diffusers folder. Out: the configurations of its U-Net, text
encoders and VAE. The published teachers' configurations are stored here, so that planning needs no download.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextConfig

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import PART_CLASSES, loading
from randcond.model_zoo.checkpoints.hub import unet_config
from randcond.model_zoo.checkpoints.layouts import LAYOUTS, TEXT_ENCODERS, VAE, layout_of, text_config
from randcond.model_zoo.denoiser.configuration import UNetConfig, complete_config


class OtherNetworks(UserError):
    """A published model's networks are of other classes than those of a U-Net teacher."""


@dataclass(frozen=True)
class Networks:
    """The configurations of a teacher's networks."""

    unet: UNetConfig
    text_encoders: list[dict[str, Any]]  # arguments of CLIPTextConfig; one, or SDXL's two
    vae: dict[str, Any]  # arguments of AutoencoderKL


def unet_of(name: Path | str) -> UNetConfig:
    """Returns a teacher's complete U-Net configuration, given a layout name, a folder or a hub id.

    Raises UserError listing the layout names if there is no such teacher.
    """
    if layout := layout_of(name):
        return complete_config(LAYOUTS[layout])
    try:
        return unet_config(name)
    except UserError as error:
        raise UserError(f"teacher: {name} is none of {', '.join(LAYOUTS)}; {error}") from None


def networks_of(name: Path | str) -> Networks:
    """Returns the configurations of a teacher's networks, given a layout name, a folder or a hub id.

    Raises UserError listing the layout names if there is no such teacher, and OtherNetworks if it is a model of
    another kind, such as a transformer.
    """
    if layout := layout_of(name):
        return Networks(unet_of(name), [text_config(sizes) for sizes in TEXT_ENCODERS[layout]], VAE)
    with loading(name):
        parts = DiffusionPipeline.load_config(str(name))
    _check_classes(name, parts)
    unet = unet_of(name)
    with loading(name):
        text = [part for part in ("text_encoder", "text_encoder_2") if part in parts]
        configs = [CLIPTextConfig.from_pretrained(str(name), subfolder=part).to_dict() for part in text]
        return Networks(unet, configs, dict(AutoencoderKL.load_config(str(name), subfolder="vae")))


def _check_classes(name: Path | str, parts: dict[str, Any]) -> None:
    """Raises OtherNetworks if a part of a pipeline is of a class that is not counted. `parts`: model_index.json."""
    networks = {part: entry[1] for part, entry in parts.items() if isinstance(entry, list) and entry[1]}
    if "unet" not in networks:
        raise OtherNetworks(f"{name}: model_index.json names no unet, so its costs are unknown")
    for part, found in networks.items():
        if part in PART_CLASSES and found not in PART_CLASSES[part]:
            raise OtherNetworks(f"{name}: {part} is a {found}, so its costs are unknown")
