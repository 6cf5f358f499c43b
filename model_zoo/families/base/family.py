"""The interface of a teacher family. To add a family, derive a class and add it to `families/registry.py`."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from randcond.model_zoo.families.base import vae_latents

# The inputs of a denoiser beside x_t and t. The keys are those of its family.
Condition = dict[str, Tensor]
DenoiserConfig = dict[str, Any]  # a denoiser's configuration as plain data


@dataclass(frozen=True)
class TextPart:
    """One text encoder of a pipeline."""

    encoder: str  # its name in the pipeline, and its folder
    tokenizer: str  # the tokenizer's
    ids: str  # key of its token ids in a batch
    # False: its text has the tokenizer's model_max_length; True: that of the pipeline's max_sequence_length.
    is_open: bool = False
    # (tokenizer, prompt) -> text: what the pipeline does to a prompt before it tokenizes it.
    prepare: Callable[[Any, str], str] | None = None


@dataclass(frozen=True)
class Stack:
    """The blocks of a transformer, which run one after the other."""

    names: tuple[str, ...]  # of the modules
    # Of each block: what Eq. 2 compares, names as FeatureTaps takes them. The image tokens come first.
    taps: tuple[tuple[str, ...], ...]
    groups: tuple[int, ...]  # lengths of its runs of equal blocks
    last_stays: bool = False  # the last block has other layers than the others, so a student always keeps it


def tapped(name: str) -> tuple[str, int]:
    """Returns the module of a tap's name, and which of its outputs is meant.

    >>> tapped("transformer_blocks.3[1]"), tapped("down_blocks.0")
    (('transformer_blocks.3', 1), ('down_blocks.0', 0))
    """
    module, bracket, element = name.partition("[")
    return module, int(element.rstrip("]")) if bracket else 0


class Family(ABC):
    """One kind of teacher: how its pipeline is loaded, and how its denoiser is conditioned and called."""

    name: ClassVar[str]  # as in messages and tags
    part: ClassVar[str]  # the denoiser's name in the pipeline, and its folder
    model: ClassVar[type[ModelMixin]]  # the denoiser's class
    # Pipeline class -> constructor options that are not part of the model.
    pipelines: ClassVar[dict[type[DiffusionPipeline], dict[str, Any]]]
    kept_options: ClassVar[tuple[str, ...]] = ()  # constructor options that are, beside the parts
    classes: ClassVar[dict[str, tuple[str, ...]]]  # part -> the classes that it may have
    optional: ClassVar[tuple[str, ...]] = ()  # the parts that a pipeline may do without
    text: ClassVar[tuple[TextPart, ...]]  # all text encoders that a pipeline of the family may have
    tokens: ClassVar[int]  # length of the text that costs are counted for
    most_tokens: ClassVar[int | None] = None  # the longest text that the pipeline takes where it leaves that open
    autoencoder: ClassVar[type[ModelMixin]] = AutoencoderKL  # the VAE's class
    packing: ClassVar[int] = 1  # latent positions of the VAE along a side of one position of the denoiser
    guidance: ClassVar[float] = 7.5  # scale of classifier-free guidance at which its models are drawn
    flow: ClassVar[bool] = False  # trained by flow matching, not with discrete betas
    # The inputs with an entry per token whose padding the denoiser's mask hides; (): it sees the padding.
    masked: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[frozenset[str]] = frozenset()  # the inputs that keep their dtype
    chooses_attention: ClassVar[bool] = False  # True: kernels/attention.py can replace the processors of its attention
    checkpointed: ClassVar[tuple[type[nn.Module], ...]]  # the modules that activation checkpointing runs again

    # Arguments of the pipeline's call that make its result depend on nothing but what we give it.
    call_options: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def parts(self, index: Mapping[str, Any]) -> list[str]:
        """Returns the parts of `classes` that a pipeline has. index: its model_index.json."""

    @abstractmethod
    def encode(
        self, pipe: Any, ids: list[Tensor], null: Tensor | None, pixels: tuple[int, int], text_tokens: int | None
    ) -> Condition:
        """Encodes token ids to the denoiser's condition.

        ids: int64 [B, L] per text encoder that the pipeline has. null: bool [B], True where the pipeline's own input
        for null captions takes the place of the encoding; None: nowhere. pixels: height and width of the images.
        text_tokens: the setting `teacher.text_tokens`.
        """

    @abstractmethod
    def denoise(self, network: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Returns the denoiser's prediction [B, C, h, w]. noised: x_t [B, C, h, w]. timesteps: t [B]."""

    def loaded(self, pipe: Any) -> None:  # noqa: B027
        """Takes out of a pipeline that was just loaded what the teacher never computes."""

    def text_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Returns the configuration of a text encoder without what loaded() takes out."""
        return config

    def to_vae(self, pipe: Any, latents: Tensor) -> Tensor:
        """Converts latents [n, C, h, w] as the denoiser sees them to those that the VAE decodes."""
        return vae_latents.to_vae(pipe, latents)

    def from_vae(self, pipe: Any, latents: Tensor) -> Tensor:
        """Converts latents as the VAE encodes them to latents [n, C, h, w] as the denoiser sees them."""
        return vae_latents.from_vae(pipe, latents)

    def from_output(self, pipe: Any, latents: Tensor) -> Tensor:
        """Converts what a pipeline returns as latents to latents [n, C, h, w] as the denoiser sees them."""
        return latents

    @abstractmethod
    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Returns the shape [C, h, w] of the latents that a denoiser of this configuration was made for."""

    def sides(self, config: Mapping[str, Any]) -> tuple[int, int | None]:
        """Returns what a side of the latents must be a multiple of, and the longest side; None: there is none."""
        return 1, None

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

    def stack(self, config: Mapping[str, Any]) -> Stack | None:
        """Returns the stack of equal blocks that a student may have fewer of, None if there is none."""
        return None

    def with_blocks(self, config: Mapping[str, Any], kept: Sequence[int]) -> DenoiserConfig:
        """Returns the configuration of a denoiser that has only the blocks `kept` of its stack, by their numbers."""
        raise NotImplementedError

    def with_heads(self, config: Mapping[str, Any], heads: int) -> DenoiserConfig:
        """Returns the configuration of a denoiser with another number of attention heads, each as wide as before."""
        raise NotImplementedError

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
            return self.config_of(self.model.from_config(dict(stored)))

    def config_of(self, network: Any) -> DenoiserConfig:
        """Returns the configuration of a denoiser of the family, complete."""
        return plain_config(network.config)

    def lengths(self, pipe: Any, text_tokens: int | None) -> list[int | None]:
        """Returns the length of the text of each text encoder in tokens; None: its tokenizer's.

        text_tokens: the setting `teacher.text_tokens`; None: the pipeline's default.
        """
        length = text_tokens if text_tokens is not None else default_length(type(pipe))
        return [length if part.is_open else None for part in self.text_parts(pipe)]

    def text_length(self, lengths: Sequence[int]) -> int:
        """Returns the length of the text that the denoiser is given. lengths: of `text`, in tokens."""
        return self.tokens

    def text_parts(self, pipe: Any) -> list[TextPart]:
        """Returns the text encoders that a pipeline has."""
        return [part for part in self.text if getattr(pipe, part.encoder, None) is not None]


def default_length(pipeline: type[DiffusionPipeline]) -> int | None:
    """Returns the default of a pipeline's max_sequence_length, in tokens; None: it has no such argument."""
    found = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    return found.default if found else None


def plain_config(config: Any) -> DenoiserConfig:
    """Returns a denoiser's configuration without diffusers' private keys.

    `_use_default_values` would reset values that a rule changed. `_name_or_path` holds a local path.
    """
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}
