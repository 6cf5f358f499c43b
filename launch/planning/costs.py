"""What a plan starts from: the cluster, and what the experiment's networks cost on it, counted without weights."""

from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Literal

import torch
from diffusers import UNet2DConditionModel

from randcond.launch.config.batch import batch_shape, shard_group
from randcond.launch.config.gpus import Gpu
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.model_zoo.cost.flops import UNetCost, decoder_cost, text_parameters, unet_cost
from randcond.model_zoo.cost.gpu_occupancy import forward_work
from randcond.model_zoo.cost.memory import COMPARED_BYTES, Sharding, activations_per_sample, trained_shapes, unet_blocks
from randcond.model_zoo.networks import layout_of, networks_of
from randcond.model_zoo.students.registry import find_rule, student_config


@dataclass(frozen=True)
class Cluster:
    """Equal hosts of equal GPUs."""

    gpu: Gpu
    nodes: int
    per_node: int

    @property
    def ranks(self) -> int:
        """GPUs in all."""
        return self.nodes * self.per_node


class Sizes:
    """What a teacher and a student of it cost; the engine and the batch change nothing of it."""

    def __init__(self, path: str, rule: str, pixels: int | None = None) -> None:
        """`pixels`: the side of the images, where it is not the teacher's own.

        Raises UserError when there is no such teacher, or the student's rule does not apply to it.
        """
        self.networks = networks_of(path if layout_of(path) else resolve_path(path))
        if pixels:
            factor = 2 ** (len(self.networks.vae["block_out_channels"]) - 1)
            self.networks = replace(self.networks, unet={**self.networks.unet, "sample_size": pixels // factor})
        self.rule = rule
        self.teacher = unet_cost(UNet2DConditionModel, self.networks.unet)
        self.student: UNetCost = unet_cost(find_rule(self.rule).model, student_config(self.rule, self.networks.unet))
        self.teacher_work = forward_work(UNet2DConditionModel, self.networks.unet)
        self.student_work = forward_work(find_rule(self.rule).model, student_config(self.rule, self.networks.unet))
        self.shapes, self.blocks = trained_shapes(self.rule, self.networks.unet)
        self.text = sum(map(text_parameters, self.networks.text_encoders))
        self.vae, self.decode = decoder_cost(self.networks.vae, self.networks.unet["sample_size"])
        self.teacher_blocks = unet_blocks(self.networks.unet)

    @cached_property
    def trained(self) -> int:
        """Numbers that are trained: the student's and its projectors'."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def activations(self, precision: str, checkpointing: bool, compared: float) -> int:
        """Bytes kept per sample of a micro-batch; `compared`: per number of a feature that the losses compare."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return activations_per_sample(self.rule, self.networks.unet, dtype, checkpointing, compared)


def counted(config: Config, stage: Literal["train", "eval"] = "train") -> Sizes:
    """The sizes of an experiment's networks on the images of a stage.

    Counting takes seconds, and most of a table's rows have the same.
    """
    trained_on = config.cache.resolution if config.cache.images else None
    return _counted(
        config.teacher.path, config.student.rule, trained_on if stage == "train" else config.eval.resolution
    )


def compared(config: Config) -> float:
    """Bytes that the feature losses keep per number of a feature for the backward pass."""
    losses = asdict(config.train.losses)
    return sum(size for name, size in COMPARED_BYTES.items() if losses[name])


_counted = cache(Sizes)


def sharding(config: Config, cluster: Cluster) -> Sharding:
    """How the experiment's engine spreads the state over the cluster."""
    engine = config.engine
    kind = f"zero-{engine.zero_stage}" if engine.kind == "deepspeed" else f"fsdp-{engine.sharding}"
    _, accumulation = batch_shape(config.train.global_batch, cluster.ranks, engine.micro_batch)
    low = 2 if engine.precision == "bf16" else 4
    spread = engine.sharding if engine.kind == "fsdp" else ""  # a key of FSDP alone
    group = shard_group(spread, engine.shard_group, cluster.ranks, cluster.per_node)
    return Sharding(kind, cluster.ranks, group, low, accumulation > 1)
