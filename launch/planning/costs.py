"""The inputs of a plan: the cluster, and the costs of an experiment's networks, counted without loading weights."""

from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Literal

import torch

from randcond.launch.config.engines import batch_shape, shard_group
from randcond.launch.config.gpus import Gpu
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config, Teacher
from randcond.model_zoo.checkpoints.layouts import layout_of
from randcond.model_zoo.cost.drawing_memory import denoiser_peak, text_peak
from randcond.model_zoo.cost.flops import DenoiserCost, decoder_cost, denoiser_cost, encoder_flop
from randcond.model_zoo.cost.gpu_occupancy import Work, forward_work
from randcond.model_zoo.cost.memory import (
    COMPARED_BYTES,
    EMA,
    MOMENTS,
    MOMENTS_IN_8_BITS,
    Sharding,
    activations_per_sample,
    block_sizes,
    trained_shapes,
)
from randcond.model_zoo.int8_weights import int8_bytes, int8_kind
from randcond.model_zoo.networks import CLIP_TOKENS, networks_of
from randcond.model_zoo.students.registry import student_of

CAPTION_TOKENS = 48  # that a language model computes per caption in length buckets: most have some 30 tokens


@dataclass(frozen=True)
class Cluster:
    """Equal hosts with equal GPUs."""

    gpu: Gpu
    nodes: int  # number of hosts
    per_node: int  # GPUs per host

    @property
    def ranks(self) -> int:
        """Number of GPUs on all hosts."""
        return self.nodes * self.per_node


class Sizes:
    """The costs of a teacher and its student. They don't depend on the engine or the batch."""

    def __init__(self, path: str, rule: str, pixels: int | None = None, text_tokens: int | None = None) -> None:
        """Counts the costs.

        path: the teacher
        rule: the student rule
        pixels: side of the images, if it is not the teacher's own
        text_tokens: the setting `teacher.text_tokens`

        Raises UserError if there is no such teacher, or if the student rule does not apply to it.
        """
        self.networks = networks_of(path if layout_of(path) else resolve_path(path))
        self.packing = self.networks.denoiser.family.packing
        self.pixels_per_latent = self.networks.pixels_per_latent
        denoiser = self.networks.denoiser.reading(self.networks.text_length(text_tokens))
        if pixels:
            denoiser = denoiser.at(pixels // self.pixels_per_latent)
        self.networks = replace(self.networks, denoiser=denoiser)
        self.derived = student_of(rule, self.networks.denoiser)
        self.shapes, self.blocks = trained_shapes(self.derived, self.networks.denoiser)

    # Each count takes up to a second, and most readers need a few of them.

    @cached_property
    def teacher(self) -> DenoiserCost:
        """The teacher's denoiser: parameters and MACs."""
        return denoiser_cost(self.networks.denoiser)

    @cached_property
    def student(self) -> DenoiserCost:
        """The student's denoiser: parameters and MACs."""
        return denoiser_cost(self.derived.denoiser)

    @cached_property
    def teacher_work(self) -> Work:
        """The matrix products of the teacher's forward pass."""
        return forward_work(self.networks.denoiser)

    @cached_property
    def student_work(self) -> Work:
        """The matrix products of the student's forward pass."""
        return forward_work(self.derived.denoiser)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape [C, h, w] of a latent."""
        return self.networks.denoiser.latent_shape

    @cached_property
    def text(self) -> int:
        """Number of parameters of the text encoders."""
        return sum(p.numel() for text in self.networks.text_encoders for p in text.blank().parameters())

    @cached_property
    def text_layer(self) -> int:
        """Number of parameters of the text encoders' largest layer."""
        layers = (module for text in self.networks.text_encoders for module in text.blank().modules())
        return max(sum(p.numel() for p in layer.parameters(recurse=False)) for layer in layers)

    def text_flop(self, of: Teacher) -> int:
        """Returns the FLOP of encoding one caption by language models. CLIPs are left out: they take about 1 %.

        of: the settings of the teacher.
        """
        family = self.networks.denoiser.family
        tokens = self.networks.open_length(of.text_tokens)
        if family.masked and of.text_buckets is not False:
            tokens = min(tokens, CAPTION_TOKENS)
        return self._language_flop(tokens)

    @cache  # a sweep asks hundreds of times  # noqa: B019 (Sizes are cached, too)
    def _language_flop(self, tokens: int) -> int:
        models = [text.blank() for text in self.networks.text_encoders if text.is_language_model]
        return sum(encoder_flop(each, tokens) for each in models)

    def text_peak(self, of: Teacher) -> int:
        """Returns the bytes per caption that encoding holds at its peak, without the weights.

        of: the settings of the teacher.
        """
        return self._text_peak(self.networks.open_length(of.text_tokens), of.dtype == "fp32")

    @cache  # noqa: B019 (Sizes are cached, too)
    def _text_peak(self, tokens: int, in_fp32: bool) -> int:
        dtype = torch.float32 if in_fp32 else torch.bfloat16
        encoders = self.networks.text_encoders
        own = (text.config.get("max_position_embeddings", CLIP_TOKENS) for text in encoders)
        lengths = (tokens if text.is_language_model else each for text, each in zip(encoders, own, strict=True))
        return max(text_peak(text.make, length, dtype) for text, length in zip(encoders, lengths, strict=True))

    @property
    def vae_side(self) -> int:
        """The side of a latent as the VAE decodes it."""
        return self.packing * self.latent_shape[-1]

    @property
    def upcasts_vae(self) -> bool:
        """True if the VAE is loaded in fp32 whatever the teacher's dtype."""
        return bool(self.networks.vae.config.get("force_upcast", True))

    @cached_property
    def _decoder(self) -> tuple[int, int]:
        return decoder_cost(self.networks.vae, self.vae_side)

    @property
    def vae(self) -> int:
        """Number of parameters of the VAE."""
        return self._decoder[0]

    @property
    def decode(self) -> int:
        """FLOP of decoding one latent."""
        return self._decoder[1]

    @cached_property
    def teacher_blocks(self) -> list[int]:
        """Numbers of parameters of the blocks of the teacher's denoiser."""
        return block_sizes(self.networks.denoiser)

    @cached_property
    def trained(self) -> int:
        """Number of trained parameters: the student's and its projectors'."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def teacher_bytes(self, dtype: str) -> int:
        """Returns the bytes of the teacher's denoiser, given the setting `teacher.dtype`."""
        return self._int8_bytes[0] if int8_kind(dtype) else weight_bytes(dtype) * self.teacher.parameters

    def teacher_peak(self, dtype: str) -> int:
        """Returns the bytes per sample that the teacher's forward pass holds at its peak, given `teacher.dtype`."""
        return denoiser_peak(self.networks.denoiser, torch.float32 if dtype == "fp32" else torch.bfloat16)

    def text_bytes(self, of: Teacher) -> int:
        """Returns the bytes of the text encoders on a device, given the settings of the teacher."""
        if of.text_device == "cpu":
            return weight_bytes(of.dtype) * self.text_layer
        return self.loaded_text_bytes(of)

    def loaded_text_bytes(self, of: Teacher) -> int:
        """Returns the bytes of the text encoders, wherever they are."""
        return self._int8_bytes[1] if of.text_in_8_bits else weight_bytes(of.dtype) * self.text

    @cached_property
    def _int8_bytes(self) -> tuple[int, int]:
        """The bytes of the denoiser and of the text encoders, if their weights are stored in 8 bits."""
        with torch.device("meta"):
            denoiser = int8_bytes(self.networks.denoiser.build())
            return denoiser, sum(int8_bytes(text.blank()) for text in self.networks.text_encoders)

    def activations(self, precision: str, checkpointing: bool, compared: float) -> int:
        """Returns the bytes that a micro-batch keeps per sample for the backward pass.

        `compared`: bytes kept for the feature losses, per element of a feature map (see compared()).
        """
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return activations_per_sample(self.derived, self.networks.denoiser, dtype, checkpointing, compared)


def counted(config: Config, stage: Literal["train", "eval"] = "train") -> Sizes:
    """Returns the costs of an experiment's networks at the image size of a stage.

    Counting takes seconds. Results are cached, because most rows of a table share them.
    """
    pixels = config.cache.resolution if stage == "train" else config.eval.resolution
    return _counted(config.teacher.path, config.student.full_rule, pixels, config.teacher.text_tokens)


def weight_bytes(dtype: str) -> int:
    """Returns the bytes of a weight or activation, given the setting `teacher.dtype`. With 8 bits, that of bf16."""
    return 4 if dtype == "fp32" else 2


def compared(config: Config) -> float:
    """Returns the bytes that the feature losses keep for the backward pass, per element of a feature map."""
    losses = asdict(config.train.losses)
    return sum(size for name, size in COMPARED_BYTES[config.engine.precision].items() if losses[name])


_counted = cache(Sizes)


def sharding(config: Config, cluster: Cluster) -> Sharding:
    """Returns how the experiment's engine shards the training state over the cluster."""
    engine = config.engine
    _, accumulation = batch_shape(config.train.global_batch, cluster.ranks, engine.micro_batch)
    low = 2 if engine.precision == "bf16" else 4
    group = shard_group(engine.engine_kind, engine.shard_group, cluster.ranks, cluster.per_node)
    moments = MOMENTS_IN_8_BITS if config.train.optimizer == "adamw_8bit" else MOMENTS
    ema = EMA if engine.ema == "device" or (engine.ema == "cpu" and cluster.gpu.host) else 0
    return Sharding(engine.engine_kind, cluster.ranks, group, low, accumulation > 1, moments, ema)
