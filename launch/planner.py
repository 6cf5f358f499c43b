"""What an experiment will take, before it is run: memory per GPU by part, time and GPU-hours per stage, traffic.

In: a configuration, a cluster, an efficiency (the share of the GPUs' peak that the arithmetic reaches). Out: plain
numbers. The costs come from model_zoo's counts at the experiment's own configurations; no weight is loaded.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from randcond.launch.batch import batch_shape
from randcond.launch.config import Config, resolve_path
from randcond.launch.gpus import Gpu
from randcond.launch.protocols import protocol_of
from randcond.model_zoo.cost import UNetCost, decoder_cost, text_parameters, training_flop, unet_cost
from randcond.model_zoo.memory import LIVE, Sharding, activations_per_sample, persistent, state_memory, trained_shapes
from randcond.model_zoo.networks import layout_of, networks_of
from randcond.model_zoo.students import find_rule, student_config

RUNTIME = 2.0e9  # bytes a process takes on a GPU beside its tensors: CUDA, NCCL, cuDNN's and the allocator's slack
USABLE = 0.95  # of a GPU's memory
WHOLE_LIST = 30_000  # images of an evaluation that names no size: the captions of the paper's protocol
LIBRARY_STEPS = 50  # of a sampler where nothing says how many: most pipelines' own


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
    """What the experiment's networks cost, counted once; the engine and the batch change nothing of it."""

    def __init__(self, config: Config) -> None:
        """Raises ValueError when there is no such teacher, or the student's rule does not apply to it."""
        path = config.teacher.path
        self.networks = networks_of(path if layout_of(path) else resolve_path(path))
        self.rule = config.student.rule
        self.teacher = unet_cost(UNet2DConditionModel, self.networks.unet)
        self.student: UNetCost = unet_cost(find_rule(self.rule).model, student_config(self.rule, self.networks.unet))
        self.shapes, self.blocks = trained_shapes(self.rule, self.networks.unet)
        self.text = sum(map(text_parameters, self.networks.text_encoders))
        self.vae, self.decode = decoder_cost(self.networks.vae, self.networks.unet["sample_size"])
        self._activations: dict[tuple[str, bool], int] = {}

    @cached_property
    def trained(self) -> int:
        """Numbers that are trained: the student's and its projectors'."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def activations(self, precision: str, checkpointing: bool) -> int:
        """Bytes kept per sample of a micro-batch."""
        key = (precision, checkpointing)
        if key not in self._activations:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            self._activations[key] = activations_per_sample(self.rule, self.networks.unet, dtype, checkpointing)
        return self._activations[key]


def sharding(config: Config, cluster: Cluster) -> Sharding:
    """How the experiment's engine spreads the state over the cluster."""
    engine = config.engine
    kind = f"zero-{engine.zero_stage}" if engine.kind == "deepspeed" else f"fsdp-{engine.sharding}"
    _, accumulation = batch_shape(config.train.global_batch, cluster.ranks, engine.micro_batch)
    low = 2 if engine.precision == "bf16" else 4
    return Sharding(kind, cluster.ranks, engine.shard_group or cluster.per_node, low, accumulation > 1)


def training_memory(config: Config, sizes: Sizes, cluster: Cluster) -> dict[str, int]:
    """Bytes per GPU while training, by part."""
    engine, low = config.engine, 2 if config.teacher.dtype == "bf16" else 4
    micro, _ = batch_shape(config.train.global_batch, cluster.ranks, engine.micro_batch)
    state = state_memory(sizes.shapes, sizes.blocks, sharding(config, cluster))
    unet = low * sizes.teacher.parameters
    if engine.teacher == "sharded":
        unet = unet // cluster.ranks + unet // 4  # its largest blocks are gathered, one ahead
    upcast = sizes.networks.vae.get("force_upcast", True)
    return {
        "teacher U-Net": unet,
        "text encoders and VAE": low * sizes.text + (4 if upcast else low) * sizes.vae,
        "student weights": state.weights,
        "gradients": state.gradients,
        "optimizer, fp32 weights, EMA": state.optimizer,
        "reduction buckets": state.buffers,
        "gathered in a step": state.transient,
        "activations": micro * sizes.activations(engine.precision, engine.activation_checkpointing),
        "CUDA, NCCL, slack": int(RUNTIME),
    }


@dataclass(frozen=True)
class Traffic:
    """What a GPU sends in one step (in rings, as much as it receives)."""

    sent: float  # bytes
    seconds: float  # at the links' full speed


def step_traffic(config: Config, sizes: Sizes, cluster: Cluster) -> Traffic:
    """What the engine's collectives send for the student, and for a sharded teacher.

    A ring over several hosts enters and leaves each of them once, and NCCL lays one over every GPU's network card: of
    what a GPU sends to its neighbour, 1 / (GPUs of a host) goes over its card.
    """
    gpu = cluster.gpu
    how = sharding(config, cluster)
    _, accumulation = batch_shape(config.train.global_batch, how.ranks, config.engine.micro_batch)
    low, total = how.compute_bytes, sizes.trained

    def ring(number: int) -> float:
        return (number - 1) / number  # of a reduce-scatter or an all-gather; an all-reduce is both

    def on(ranks: int, size: float) -> Traffic:
        seconds = size / (1e9 * gpu.within_gb_s)
        if ranks > cluster.per_node:
            seconds = max(seconds, size / cluster.per_node / (1e9 * gpu.across_gb_s))
        return Traffic(size, seconds)

    whole = persistent(sizes.shapes)  # ZeRO-3 gathers these once a step
    again = max(0, total - LIVE // 2)  # and these a second time for the backward: too far from their forward to keep
    size = {  # gradients in fp32; DeepSpeed's stages 0 to 2 all-reduce them, which is sending them twice
        "zero-0": 2 * 4 * total,
        "zero-1": (2 * 4 + low) * total,
        "zero-2": (accumulation * 2 * 4 + low) * total,
        "zero-3": accumulation * (4 * total + low * (total - whole + again)) + low * whole,
        "fsdp-full": accumulation * (2 * low + 4) * total,
        "fsdp-grad_op": accumulation * (low + 4) * total,
        "fsdp-hybrid": accumulation * (2 * low + 4) * total,
    }[how.kind]
    group = how.group if how.kind == "fsdp-hybrid" and how.group else how.ranks
    parts = [on(group, size * ring(group))]
    if group < how.ranks:  # the groups' gradients are brought together, each GPU's share over its own card
        across = accumulation * 2 * 4 * total / group * ring(how.ranks // group)
        parts.append(Traffic(across, across / (1e9 * gpu.across_gb_s)))
    if config.engine.teacher == "sharded":
        low = 2 if config.teacher.dtype == "bf16" else 4
        parts.append(on(how.ranks, accumulation * low * sizes.teacher.parameters * ring(how.ranks)))
    return Traffic(sum(part.sent for part in parts), sum(part.seconds for part in parts))


def step_seconds(config: Config, sizes: Sizes, cluster: Cluster, efficiency: float) -> tuple[float, float, float]:
    """(arithmetic, traffic, whole step) in seconds; stages 0 to 2 reduce after the backward, the others beneath it."""
    flop = training_flop(sizes.teacher, sizes.student)
    if config.engine.activation_checkpointing:
        flop += sizes.student.flop
    arithmetic = flop * config.train.global_batch / cluster.ranks / (1e12 * cluster.gpu.tflops * efficiency)
    traffic = step_traffic(config, sizes, cluster).seconds
    overlaps = config.engine.kind == "fsdp" or config.engine.zero_stage == 3
    return arithmetic, traffic, max(arithmetic, traffic) if overlaps else arithmetic + traffic


def stage_hours(
    config: Config, sizes: Sizes, cluster: Cluster, efficiency: float, step: float
) -> dict[str, dict[str, float]]:
    """Stage -> {hours, gpu_hours, samples}; caching and evaluation share out whole shards and chunks.

    `step`: seconds of a training step.
    """
    rate = 1e12 * cluster.gpu.tflops * efficiency  # FLOP/s of one GPU
    cache, ev = config.cache, config.eval
    # Guidance: two calls per step. A real image goes through the VAE's encoder, which takes less than its decoder.
    drawn = (sizes.decode if cache.images else 2 * cache.steps * sizes.teacher.flop) / rate
    shards = -(-cache.size // cache.shard_size)
    images = (ev.size or WHOLE_LIST) * (2 if ev.size and cache.exclude else 1)  # seen and unseen captions
    chunks = -(-images // ev.batch)
    drawing = {"teacher": sizes.teacher.flop, "student": sizes.student.flop}
    steps = protocol_of(ev).steps or LIBRARY_STEPS
    image = sum(2 * steps * drawing[who] + sizes.decode for who in ev.of) / rate
    seconds = {
        "cache": -(-shards // cluster.ranks) * min(cache.shard_size, cache.size) * drawn,
        "train": config.train.steps * step,
        "eval": -(-chunks // cluster.ranks) * ev.batch * image,
    }
    samples = {
        "cache": cache.size,
        "train": config.train.steps * config.train.global_batch,
        "eval": images,
    }
    return {
        stage: {"samples": samples[stage], "hours": spent / 3600, "gpu_hours": spent / 3600 * cluster.ranks}
        for stage, spent in seconds.items()
    }


def fits(memory: dict[str, int], cluster: Cluster) -> bool:
    """Whether a GPU has room for all of it."""
    return sum(memory.values()) <= USABLE * 1e9 * cluster.gpu.memory_gb


def knobs(config: Config, sizes: Sizes, cluster: Cluster) -> list[tuple[str, float]]:
    """(overrides, GB) that make it fit: single changes where one is enough, else all together; empty: nothing does."""
    engine = config.engine
    micro, _ = batch_shape(config.train.global_batch, cluster.ranks, engine.micro_batch)
    single: list[dict[str, Any]] = [
        {"micro_batch": micro // 2**power} for power in range(1, 12) if micro % 2**power == 0
    ]
    single += [{"activation_checkpointing": True}]
    stages = [{"kind": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)] + [
        {"kind": "fsdp", "sharding": "full"}
    ]
    single += [change for change in stages if cluster.ranks > 1]
    single += [{"teacher": "sharded"}] if cluster.ranks > 1 else []
    smallest = {"micro_batch": micro // max(2**power for power in range(12) if micro % 2**power == 0)}
    together = {**smallest, "activation_checkpointing": True}
    together |= {"kind": "fsdp", "sharding": "full", "teacher": "sharded"} if cluster.ranks > 1 else {}

    def needed(change: dict[str, Any]) -> float | None:
        memory = training_memory(replace(config, engine=replace(engine, **change)), sizes, cluster)
        return sum(memory.values()) / 1e9 if fits(memory, cluster) else None

    found = [(change, gb) for change in single if (gb := needed(change)) is not None]
    if not found and (gb := needed(together)) is not None:
        found = [(together, gb)]
    largest_micro = [change for change, _ in found if "micro_batch" in change][1:]  # one size is enough
    return [(overrides(change), gb) for change, gb in found if change not in largest_micro]


def overrides(change: dict[str, Any]) -> str:
    """An engine's changes as one types them."""
    return " ".join(f"engine.{key}={str(value).lower()}" for key, value in change.items())


def plan(config: Config, sizes: Sizes, cluster: Cluster, efficiency: float) -> dict[str, Any]:
    """Everything of one experiment on one cluster, as plain data.

    Raises ValueError with the arithmetic when the global batch does not divide over the cluster.
    """
    micro, accumulation = batch_shape(config.train.global_batch, cluster.ranks, config.engine.micro_batch)
    memory = training_memory(config, sizes, cluster)
    arithmetic, traffic, step = step_seconds(config, sizes, cluster, efficiency)
    enough = fits(memory, cluster)
    return {
        "experiment": config.name,
        "gpus": cluster.ranks,
        "nodes": cluster.nodes,
        "engine": sharding(config, cluster).kind,
        "micro_batch": micro,
        "accumulation": accumulation,
        "global_batch": config.train.global_batch,
        "memory_gb": {part: size / 1e9 for part, size in memory.items()},
        "needed_gb": sum(memory.values()) / 1e9,
        "usable": USABLE,
        "fits": enough,
        "knobs": [] if enough else knobs(config, sizes, cluster),
        "efficiency": efficiency,
        "step_seconds": step,
        "arithmetic_seconds": arithmetic,
        "traffic_seconds": traffic,
        "traffic_gb": step_traffic(config, sizes, cluster).sent / 1e9,
        "samples_per_second": config.train.global_batch / step,
        "stages": stage_hours(config, sizes, cluster, efficiency, step),
        "gpu": asdict(cluster.gpu),
    }


SWEEP_NODES = (1, 2, 4, 8, 16, 32, 64, 128)
SWEEP_GPUS = 1024
SWEEP_MICRO = (1, 2, 4, 8, 16, 32, 64, 128)
SWEEP_ENGINES: list[dict[str, Any]] = [
    {"kind": "deepspeed", "zero_stage": 1},
    {"kind": "deepspeed", "zero_stage": 2},
    {"kind": "deepspeed", "zero_stage": 3},
    {"kind": "fsdp", "sharding": "full"},
    {"kind": "fsdp", "sharding": "hybrid"},
]


def sweep(config: Config, sizes: Sizes, gpu: Gpu, per_node: int, efficiency: float) -> list[dict[str, Any]]:
    """A plan per engine, micro-batch and number of hosts up to 1,024 GPUs, where the global batch divides.

    Raises ValueError where it divides over none.
    """
    rows = []
    for nodes in SWEEP_NODES:
        cluster = Cluster(gpu, nodes, per_node)
        per_rank, rest = divmod(config.train.global_batch, cluster.ranks)
        if cluster.ranks > SWEEP_GPUS or rest:
            continue
        for engine in SWEEP_ENGINES:
            for micro in (size for size in SWEEP_MICRO if per_rank % size == 0):
                changed = replace(config, engine=replace(config.engine, micro_batch=micro, **engine))
                rows.append(plan(changed, sizes, cluster, efficiency))
    if not rows:
        raise ValueError(f"train.global_batch: {config.train.global_batch} divides over no hosts of {per_node} GPUs")
    return rows
