"""What an experiment will take, before it is run: memory per GPU by part, time and GPU-hours per stage, traffic.

In: a configuration, a cluster, an efficiency (the share of the GPUs' peak that the arithmetic reaches). Out: plain
numbers. The costs come from model_zoo's counts at the experiment's own configurations; no weight is loaded.
"""

from dataclasses import asdict, replace
from typing import Any

from randcond.launch.config.batch import batch_shape
from randcond.launch.config.gpus import Gpu
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.planning.costs import Cluster, Sizes, compared, counted, sharding
from randcond.launch.planning.step_time import FULL, filled, step_seconds, step_traffic
from randcond.model_zoo.cost.memory import state_memory

RUNTIME = 2.0e9  # bytes a process takes on a GPU beside its tensors: CUDA, NCCL, cuDNN's and the allocator's slack
USABLE = 0.95  # of a GPU's memory
WHOLE_LIST = 30_000  # images of an evaluation that names no size: the captions of the paper's protocol
WHOLE_SPLIT = 40_504  # with unseen ones apart: all of val2014 (Table 2)
BENCH_PROMPTS = 300  # of a category of T2I-CompBench
LIBRARY_STEPS = 50  # of a sampler where nothing says how many: most pipelines' own


def training_memory(config: Config, sizes: Sizes, cluster: Cluster) -> dict[str, int]:
    """Bytes per GPU while training, by part."""
    engine, low = config.engine, 2 if config.teacher.dtype == "bf16" else 4
    micro, _ = batch_shape(config.train.global_batch, cluster.ranks, engine.micro_batch)
    state = state_memory(sizes.shapes, sizes.blocks, sharding(config, cluster))
    unet = low * sizes.teacher.parameters
    if engine.teacher == "sharded":
        unet = unet // cluster.ranks + low * sum(sorted(sizes.teacher_blocks)[-2:])  # gathered, one ahead
    upcast = sizes.networks.vae.get("force_upcast", True)
    return {
        "teacher U-Net": unet,
        "text encoders and VAE": low * sizes.text + (4 if upcast else low) * sizes.vae,
        "student weights": state.weights,
        "gradients": state.gradients,
        "optimizer, fp32 weights, EMA": state.optimizer,
        "reduction buckets": state.buffers,
        "gathered in a step": state.transient,
        "activations": micro * sizes.activations(engine.precision, engine.activation_checkpointing, compared(config)),
        "CUDA, NCCL, slack": int(RUNTIME),
    }


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
    apart = 2 if ev.unseen or cache.exclude else 1  # splits, of each of which eval.size are drawn
    images = ev.size * apart if ev.size else WHOLE_SPLIT if ev.unseen else WHOLE_LIST
    chunks = -(-images // ev.batch)
    bench = BENCH_PROMPTS * len(ev.compbench.categories) * ev.compbench.images if ev.compbench.lists else 0
    bench_chunks = -(-bench // ev.batch)
    drawn_at = counted(config, "eval")
    drawing = {"teacher": drawn_at.teacher.flop, "student": drawn_at.student.flop}
    steps = protocol_of(ev).steps or LIBRARY_STEPS
    image = sum(2 * steps * drawing[who] + drawn_at.decode for who in ev.of) / rate
    train = config.train
    share = min(1.0, train.eval_size * apart / images) if train.eval_size else 1.0
    student = (2 * steps * drawn_at.student.flop + drawn_at.decode) / rate
    seconds = {
        "cache": -(-shards // cluster.ranks) * min(cache.shard_size, cache.size) * drawn,
        "train": train.steps * step + train.evaluations * share * -(-chunks // cluster.ranks) * ev.batch * student,
        "eval": (-(-chunks // cluster.ranks) + -(-bench_chunks // cluster.ranks)) * ev.batch * image,
    }
    samples = {
        "cache": cache.size,
        "train": config.train.steps * config.train.global_batch,
        "eval": images + bench,
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
    # Which is neither one CUDA graph nor in fp8.
    sharded: dict[str, Any] = {"teacher": "sharded"} | {
        key: False for key in ("teacher_graph", "teacher_fp8") if getattr(engine, key)
    }
    single += [sharded] if cluster.ranks > 1 else []
    smallest = {"micro_batch": micro // max(2**power for power in range(12) if micro % 2**power == 0)}
    together = {**smallest, "activation_checkpointing": True}
    together |= {"kind": "fsdp", "sharding": "full", **sharded} if cluster.ranks > 1 else {}

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

    Raises UserError with the arithmetic when the global batch does not divide over the cluster.
    """
    micro, accumulation = batch_shape(config.train.global_batch, cluster.ranks, config.engine.micro_batch)
    memory = training_memory(config, sizes, cluster)
    step = step_seconds(config, sizes, cluster, efficiency)
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
        "step_seconds": step.whole,
        "arithmetic_seconds": step.arithmetic,
        "idle_seconds": step.idle,
        "full_at": FULL,
        "filled": filled(sizes, cluster.gpu, micro),
        "traffic_seconds": step.traffic,
        "traffic_gb": step_traffic(config, sizes, cluster).sent / 1e9,
        "samples_per_second": config.train.global_batch / step.whole,
        "stages": stage_hours(config, sizes, cluster, efficiency, step.whole),
        "gpu": asdict(cluster.gpu),
    }


SWEEP_GPUS = 1024
SWEEP_MICRO = (1, 2, 4, 8, 16, 32, 64, 128)
SWEEP_ENGINES: list[dict[str, Any]] = [
    {"kind": "deepspeed", "zero_stage": 1},
    {"kind": "deepspeed", "zero_stage": 2},
    {"kind": "deepspeed", "zero_stage": 3},
    {"kind": "fsdp", "sharding": "full"},
    {"kind": "fsdp", "sharding": "hybrid"},
]


def _dividing(config: Config, cluster: Cluster) -> list[dict[str, Any]]:
    """The engines that are tried, without a hybrid whose groups don't divide the GPUs."""
    divides = cluster.ranks % (config.engine.shard_group or cluster.per_node) == 0
    return [engine for engine in SWEEP_ENGINES if divides or engine.get("sharding") != "hybrid"]


def sweep(config: Config, sizes: Sizes, gpu: Gpu, per_node: int, efficiency: float) -> list[dict[str, Any]]:
    """A plan per engine, micro-batch and number of hosts up to 1,024 GPUs, where the global batch divides.

    Raises UserError where it divides over none.
    """
    rows = []
    for nodes in (2**power for power in range(11) if 2**power * per_node <= SWEEP_GPUS):
        cluster = Cluster(gpu, nodes, per_node)
        per_rank, rest = divmod(config.train.global_batch, cluster.ranks)
        if rest:
            continue
        for engine in _dividing(config, cluster):
            for micro in (size for size in SWEEP_MICRO if per_rank % size == 0):
                changed = replace(config, engine=replace(config.engine, micro_batch=micro, **engine))
                rows.append(plan(changed, sizes, cluster, efficiency))
    if not rows:
        raise UserError(f"train.global_batch: {config.train.global_batch} divides over no hosts of {per_node} GPUs")
    return rows


def curve(config: Config, sizes: Sizes, gpu: Gpu, per_node: int, efficiency: float) -> list[dict[str, Any]]:
    """The fastest plan that fits, of every engine and micro-batch, on 1, 2, 4, ... GPUs of a host and hosts of them.

    Raises UserError where the global batch divides over none of them, or nothing fits.
    """
    rows = []
    clusters = [Cluster(gpu, 1, 2**power) for power in range(11) if 2**power < per_node]
    clusters += [Cluster(gpu, 2**power, per_node) for power in range(11) if 2**power * per_node <= SWEEP_GPUS]
    for cluster in clusters:
        gpus = cluster.ranks
        if config.train.global_batch % gpus:
            continue
        found = [
            plan(
                replace(config, engine=replace(config.engine, micro_batch=micro, **engine)), sizes, cluster, efficiency
            )
            for engine in _dividing(config, cluster)
            for micro in reversed(SWEEP_MICRO)
            if (config.train.global_batch // gpus) % micro == 0
        ]
        fitting = [row for row in found if row["fits"]]
        if fitting:  # of those that are as good as the fastest, the simplest: engines are listed so
            enough = 0.97 * max(row["samples_per_second"] for row in fitting)
            rows.append(next(row for row in fitting if row["samples_per_second"] >= enough))
    if not rows:
        raise UserError(f"train.global_batch: {config.train.global_batch} fits on no number of these GPUs")
    return rows
