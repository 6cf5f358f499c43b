"""Configurations of a teacher's networks, without its weights.

In: the name of a published teacher, a hub id, or a diffusers folder. Out: the configurations of its denoiser, text
encoders and VAE. The published teachers' configurations are stored here, so that planning needs no download.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextConfig

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import loading
from randcond.model_zoo.checkpoints.layouts import LAYOUTS, TEXT_ENCODERS, VAE, layout_of, text_config
from randcond.model_zoo.denoiser.architecture import Architecture, stored_architecture
from randcond.model_zoo.families.registry import PIPELINES
from randcond.model_zoo.families.stable_diffusion import StableDiffusion


class OtherNetworks(UserError):
    """A published model's networks are of other classes than those of a teacher."""


@dataclass(frozen=True)
class Networks:
    """The configurations of a teacher's networks."""

    denoiser: Architecture
    text_encoders: list[dict[str, Any]]  # arguments of CLIPTextConfig; one, or SDXL's two
    vae: dict[str, Any]  # arguments of AutoencoderKL


def denoiser_of(name: Path | str) -> Architecture:
    """Returns the architecture of a teacher's denoiser, given a layout name, a folder or a hub id.

    Raises UserError listing the layout names if there is no such teacher.
    """
    if layout := layout_of(name):
        family = StableDiffusion()
        return Architecture(family.model, family.complete(LAYOUTS[layout]))
    try:
        return stored_architecture(name)
    except UserError as error:
        raise UserError(f"teacher: {name} is none of {', '.join(LAYOUTS)}; {error}") from None


def networks_of(name: Path | str) -> Networks:
    """Returns the configurations of a teacher's networks, given a layout name, a folder or a hub id.

    Raises UserError listing the layout names if there is no such teacher, and OtherNetworks if it is a model of
    another kind.
    """
    if layout := layout_of(name):
        return Networks(denoiser_of(name), [text_config(sizes) for sizes in TEXT_ENCODERS[layout]], VAE)
    with loading(name):
        index = DiffusionPipeline.load_config(str(name))
    _check_classes(name, index)
    denoiser = denoiser_of(name)
    with loading(name):
        text = [part.encoder for part in denoiser.family.text if part.encoder in index]
        configs = [CLIPTextConfig.from_pretrained(str(name), subfolder=part).to_dict() for part in text]
        return Networks(denoiser, configs, dict(AutoencoderKL.load_config(str(name), subfolder="vae")))


def _check_classes(name: Path | str, index: dict[str, Any]) -> None:
    """Raises OtherNetworks if a part of a pipeline is of a class that is not counted. `index`: model_index.json."""
    if index.get("_class_name") not in PIPELINES:
        raise OtherNetworks(f"{name}: its pipeline is {index.get('_class_name')}, so its costs are unknown")
    _, family = PIPELINES[index["_class_name"]]
    for part, entry in index.items():
        found = entry[1] if isinstance(entry, list) else None
        if found and part in family.classes and found not in family.classes[part]:
            raise OtherNetworks(f"{name}: {part} is a {found}, so its costs are unknown")
