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
from randcond.model_zoo.checkpoints.diffusers_folder import loading, read_object
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
from randcond.model_zoo.families.base.family import Family, default_length, plain_config
from randcond.model_zoo.families.registry import PIPELINES, family_named

CLIP_TOKENS = 77  # length of CLIP's text, where no tokenizer says another one


class OtherNetworks(UserError):
    """A published model's networks are of other classes than those of a teacher."""


@dataclass(frozen=True)
class TextNetwork:
    """A text encoder's class and configuration, without its weights."""

    kind: str  # a class of transformers
    config: dict[str, Any]  # arguments of its configuration

    def make(self) -> nn.Module:
        """Builds the network, with random weights."""
        model = getattr(transformers, self.kind)
        network: nn.Module = model(model.config_class(**self.config))
        return network

    def blank(self) -> nn.Module:
        """Builds the network on the meta device."""
        with torch.device("meta"):
            return self.make()

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
    # Length in tokens of each text that a pipeline of the family may have; where the pipeline leaves it open, its
    # default.
    lengths: list[int]

    def open_length(self, text_tokens: int | None) -> int:
        """Returns the length of the text that the pipeline leaves open. text_tokens: the setting; None: the default."""
        parts = zip(self.denoiser.family.text, self.lengths, strict=True)
        return text_tokens or max((length for part, length in parts if part.is_open), default=0)

    def text_length(self, text_tokens: int | None) -> int:
        """Returns the length of the text that the denoiser is given. text_tokens: the setting `teacher.text_tokens`."""
        parts = zip(self.denoiser.family.text, self.lengths, strict=True)
        lengths = [self.open_length(text_tokens) if part.is_open else length for part, length in parts]
        return self.denoiser.family.text_length(lengths)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along a side of an image per position of the denoiser's latents."""
        return int(self.denoiser.family.packing * 2 ** (len(self.vae.config["block_out_channels"]) - 1))


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
        lengths = _lengths(denoiser.family, next(iter(denoiser.family.pipelines)))
        return Networks(denoiser, _text_networks(layout, denoiser.family), vae, lengths)
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
        lengths = _lengths(denoiser.family, PIPELINES[index["_class_name"]][0], Path(name))
        return Networks(denoiser, text, Architecture(autoencoder, config), lengths)


def _lengths(family: Family, pipeline: type[DiffusionPipeline], folder: Path | None = None) -> list[int]:
    """Returns the lengths of the texts of a pipeline. folder: of its tokenizers, if it is here."""
    found = []
    for part in family.text:
        settings = folder / part.tokenizer / "tokenizer_config.json" if folder else None
        own = read_object(settings).get("model_max_length") if settings and settings.is_file() else None
        found.append((default_length(pipeline) if part.is_open else own) or CLIP_TOKENS)
    return found


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
