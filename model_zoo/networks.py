"""Configurations of a teacher's networks, without its weights.

In: the name of a published teacher, a hub id, or a diffusers folder. Out: the configurations of its denoiser, text
encoders and VAE. The published teachers' configurations are stored here, so that planning needs no download.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import loading
from randcond.model_zoo.checkpoints.layouts import (
    CLASSES,
    LANGUAGE_MODELS,
    LAYOUTS,
    TEXT_ENCODERS,
    UNET,
    VAE,
    VAES,
    layout_of,
    text_config,
)
from randcond.model_zoo.denoiser.architecture import Architecture, stored_architecture
from randcond.model_zoo.families.base.family import Family, plain_config
from randcond.model_zoo.families.registry import PIPELINES, family_named


class OtherNetworks(UserError):
    """A published model's networks are of other classes than those of a teacher."""


@dataclass(frozen=True)
class TextNetwork:
    """A text encoder's class and configuration, without its weights."""

    kind: str  # a class of transformers
    config: dict[str, Any]  # arguments of its configuration

    def blank(self) -> nn.Module:
        """Builds the network on the meta device."""
        model = getattr(transformers, self.kind)
        with torch.device("meta"):
            network: nn.Module = model(model.config_class(**self.config))
        return network

    @property
    def is_language_model(self) -> bool:
        """True for T5 or Qwen3, which take a large share of a step. A CLIP takes about 1 %."""
        return not self.kind.startswith("CLIP")


@dataclass(frozen=True)
class Networks:
    """The configurations of a teacher's networks."""

    denoiser: Architecture
    text_encoders: list[TextNetwork]
    vae: Architecture


def denoiser_of(name: Path | str) -> Architecture:
    """Returns the architecture of a teacher's denoiser, given a layout name, a folder or a hub id.

    Raises UserError listing the layout names if there is no such teacher.
    """
    if layout := layout_of(name):
        family = family_named(CLASSES.get(layout, UNET))
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
        denoiser = denoiser_of(name)
        vae = Architecture(denoiser.family.autoencoder, VAES.get(layout, VAE))
        return Networks(denoiser, _text_networks(layout, denoiser.family), vae)
    with loading(name):
        index = DiffusionPipeline.load_config(str(name))
    _check_classes(name, index)
    denoiser = denoiser_of(name)
    with loading(name):
        kinds = {part.encoder: index.get(part.encoder, [None, None])[1] for part in denoiser.family.text}
        stored = [_stored_text(name, part, kind) for part, kind in kinds.items() if kind]
        text = [replace(each, config=denoiser.family.text_config(each.config)) for each in stored]
        autoencoder = denoiser.family.autoencoder
        config = plain_config(autoencoder.load_config(str(name), subfolder="vae"))
        return Networks(denoiser, text, Architecture(autoencoder, config))


def _text_networks(layout: str, family: Family) -> list[TextNetwork]:
    """Returns the text encoders of a published teacher."""
    clips = [TextNetwork("CLIPTextModel", text_config(sizes)) for sizes in TEXT_ENCODERS.get(layout, [])]
    if layout not in LANGUAGE_MODELS:
        return clips
    kind, config = LANGUAGE_MODELS[layout]
    return [*clips, TextNetwork(kind, family.text_config(config))]


def _stored_text(name: Path | str, part: str, kind: str) -> TextNetwork:
    config = getattr(transformers, kind).config_class.from_pretrained(str(name), subfolder=part)
    return TextNetwork(kind, config.to_dict())


def _check_classes(name: Path | str, index: dict[str, Any]) -> None:
    """Raises OtherNetworks if a part of a pipeline is of a class that is not counted. `index`: model_index.json."""
    if str(index.get("_class_name")) not in PIPELINES:
        raise OtherNetworks(f"{name}: its pipeline is {index.get('_class_name')}, so its costs are unknown")
    _, family = PIPELINES[index["_class_name"]]
    for part, entry in index.items():
        found = entry[1] if isinstance(entry, list) else None
        if found and part in family.classes and found not in family.classes[part]:
            raise OtherNetworks(f"{name}: {part} is a {found}, so its costs are unknown")
