"""A denoiser's class and configuration, without its weights, and a cache for measurements of architectures."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from diffusers import DiffusionPipeline, ModelMixin

from randcond.model_zoo.checkpoints.diffusers_folder import loading
from randcond.model_zoo.checkpoints.hub import is_hub_id, local_folder
from randcond.model_zoo.checkpoints.hub_files import hub_file
from randcond.model_zoo.families.base.family import DenoiserConfig, Family
from randcond.model_zoo.families.registry import family_of, pipeline_named


@dataclass(frozen=True)
class Architecture:
    """What a denoiser is built from."""

    model: type[ModelMixin]  # its class
    config: DenoiserConfig  # complete, without diffusers' private keys
    side: int | None = None  # of its square latents; None: those that it was made for
    tokens: int | None = None  # length of its text; None: the family's

    @classmethod
    def of(cls, network: Any) -> "Architecture":
        """Returns a network's architecture."""
        return cls(type(network), family_of(type(network)).config_of(network))

    @property
    def family(self) -> Family:
        """The family that the denoiser belongs to."""
        return family_of(self.model)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape [C, h, w] of its latents."""
        channels, *sides = self.family.latent_shape(self.config)
        height, width = [self.side] * 2 if self.side else sides
        return channels, height, width

    def build(self) -> Any:
        """Builds the network with random weights, on the current default device."""
        return self.model.from_config(self.config)

    def blank(self) -> Any:
        """Builds the network on the meta device, without weights."""
        with torch.device("meta"):
            return self.build()

    def reading(self, tokens: int) -> "Architecture":
        """Returns the same architecture for a text of another length."""
        return replace(self, tokens=None if tokens == self.family.tokens else tokens)

    def at(self, side: int) -> "Architecture":
        """Returns the same architecture for square latents of another side."""
        made_for = self.family.latent_shape(self.config)[1:]
        return replace(self, side=None if made_for == (side, side) else side)


P = ParamSpec("P")
T = TypeVar("T")
Measure = Callable[Concatenate[Architecture, P], T]


def once_per_architecture(measure: Measure[P, T]) -> Measure[P, T]:
    """Caches a measurement of a denoiser by architecture and arguments.

    A measurement runs a forward pass, which takes seconds, and many rules share architectures.
    """
    cache: dict[tuple[object, ...], T] = {}
    signature = inspect.signature(measure)

    @wraps(measure)
    def cached(denoiser: Architecture, *args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(denoiser, *args, **kwargs)
        given.apply_defaults()  # an argument at its default is the same measurement
        config = json.dumps(denoiser.config, sort_keys=True)
        sizes = (denoiser.side, denoiser.tokens)
        key = (denoiser.model, config, sizes, repr(list(given.arguments.items())[1:]))
        if key not in cache:
            cache[key] = measure(denoiser, *args, **kwargs)
        return cache[key]

    return cached


def stored_architecture(path: Path | str) -> Architecture:
    """Returns the architecture of a teacher's denoiser. For a hub id, only two small files are downloaded.

    Raises UserError if there is no such folder or hub id, or if its pipeline is of no family, and ConnectionError if
    the hub is out of reach.
    """
    of_hub = is_hub_id(path)
    folder = hub_file(path, "model_index.json").parent if of_hub else local_folder(path)
    with loading(path):
        name = DiffusionPipeline.load_config(folder).get("_class_name")
    _, family = pipeline_named(name, path)
    part = hub_file(path, f"{family.part}/config.json").parent if of_hub else folder / family.part
    with loading(path):
        return Architecture(family.model, family.complete(family.model.load_config(part)))
