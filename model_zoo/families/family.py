"""The interface of a teacher family. To add a family, derive a class and add it to `families/registry.py`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn

# The inputs of a denoiser beside x_t and t. The keys are those of its family.
Condition = dict[str, Tensor]
DenoiserConfig = dict[str, Any]  # a denoiser's configuration as plain data


@dataclass(frozen=True)
class TextPart:
    """One text encoder of a pipeline."""

    encoder: str  # its name in the pipeline, and its folder
    tokenizer: str  # the tokenizer's
    ids: str  # key of its token ids in a batch


class Family(ABC):
    """One kind of teacher: how its pipeline is loaded, and how its denoiser is conditioned and called."""

    name: ClassVar[str]  # as in messages and tags
    part: ClassVar[str]  # the denoiser's name in the pipeline, and its folder
    model: ClassVar[type[ModelMixin]]  # the denoiser's class
    # Pipeline class -> constructor options that are not part of the model.
    pipelines: ClassVar[dict[type[DiffusionPipeline], dict[str, Any]]]
    kept_options: ClassVar[tuple[str, ...]] = ()  # constructor options that are, beside the parts
    classes: ClassVar[dict[str, tuple[str, ...]]]  # part -> the classes that it may have
    text: ClassVar[tuple[TextPart, ...]]  # all text encoders that a pipeline of the family may have
    tokens: ClassVar[int]  # length of the text that costs are counted for
    exact: ClassVar[frozenset[str]] = frozenset()  # the inputs that stay in fp32
    checkpointed: ClassVar[tuple[type[nn.Module], ...]]  # the modules that activation checkpointing runs again

    @abstractmethod
    def parts(self, index: Mapping[str, Any]) -> list[str]:
        """Returns the parts of `classes` that a pipeline has. index: its model_index.json."""

    @abstractmethod
    def encode(self, pipe: Any, ids: list[Tensor], null: Tensor | None, pixels: tuple[int, int]) -> Condition:
        """Encodes token ids to the denoiser's condition.

        ids: int64 [B, L] per text encoder that the pipeline has. null: bool [B], True where the pipeline's own input
        for null captions takes the place of the encoding; None: nowhere. pixels: height and width of the images.
        """

    @abstractmethod
    def denoise(self, network: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Returns the denoiser's prediction [B, C, h, w]. noised: x_t [B, C, h, w]. timesteps: t [B]."""

    @abstractmethod
    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Returns the shape [C, h, w] of the latents that a denoiser of this configuration was made for."""

    @abstractmethod
    def blank_condition(
        self, config: Mapping[str, Any], batch: int, tokens: int, dtype: torch.dtype | None
    ) -> Condition:
        """Returns a condition of zeros for `batch` samples, on the current default device. tokens: length of the text.

        dtype: of all inputs that are not `exact`.
        """

    @abstractmethod
    def blocks(self, network: Any) -> list[nn.Module]:
        """Returns the denoiser's blocks in the order in which they run."""

    @abstractmethod
    def first_layer(self, network: Any) -> nn.Module:
        """Returns the layer whose output has a gradient that comes last in the backward pass."""

    @abstractmethod
    def faults(self, folder: Path, parts: list[str]) -> Iterator[str]:
        """Yields why the configurations of a folder's networks don't suit a teacher, one line each.

        Reads configurations only. parts: those that the folder has. Raises UserError if a file is damaged.
        """

    @abstractmethod
    def default_rule(self, config: Mapping[str, Any]) -> str:
        """Returns the student rule for a teacher of this configuration if a person names none."""

    @abstractmethod
    def tag(self, pipeline: type[DiffusionPipeline]) -> str:
        """Returns the hub's tag for models of a pipeline class."""

    def complete(self, stored: Mapping[str, Any]) -> DenoiserConfig:
        """Returns the contents of the denoiser's config.json, with missing keys set to diffusers' defaults."""
        with torch.device("meta"):
            return plain_config(self.model.from_config(dict(stored)).config)

    def sized(self, config: Mapping[str, Any], side: int) -> DenoiserConfig:
        """Returns the changes of a configuration for square latents of another side."""
        return {"sample_size": side}

    def text_parts(self, pipe: Any) -> list[TextPart]:
        """Returns the text encoders that a pipeline has."""
        return [part for part in self.text if getattr(pipe, part.encoder, None) is not None]


def plain_config(config: Any) -> DenoiserConfig:
    """Returns a denoiser's configuration without diffusers' private keys.

    `_use_default_values` would reset values that a rule changed. `_name_or_path` holds a local path.
    """
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}
