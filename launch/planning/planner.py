"""Plans an experiment before it runs: memory per GPU by part, time and GPU-hours per stage, traffic.

In: a configuration, a cluster, an efficiency (share of the GPUs' peak that the arithmetic reaches). Out: plain numbers.
model_zoo counts the costs from the configurations of the networks. No weights are loaded.
"""

from dataclasses import dataclass, replace
from typing import Any

from randcond.launch.config.engines import ENGINES, EngineKind, batch_shape
from randcond.launch.config.gpus import Gpu
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.planning.costs import Cluster, Sizes, counted
from randcond.launch.planning.fitting import (
    SWEEP_ENGINES,
    USABLE,
    fits,
    knobs,
    training_memory,
    with_planned_micro_batch,
)
from randcond.launch.planning.step_time import FULL, filled, step_seconds, step_traffic

WHOLE_LIST = 30_000  # images of an evaluation without eval.size: the captions of the paper's protocol
WHOLE_SPLIT = 40_504  # the same if unseen captions are scored separately: all of val2014 (Table 2)
BENCH_PROMPTS = 300  # per category of T2I-CompBench
GENEVAL_PROMPTS, GENEVAL2_PROMPTS = 553, 800
DRAWN_AT_ONCE = 32  # images, if the largest batch that fits is taken
LIBRARY_STEPS = 50  # sampling steps if nothing sets their number: the default of most pipelines


@dataclass(frozen=True)
class StageCost:
    """What a stage takes on the whole cluster."""

    samples: int  # latents, training samples or images
    hours: float
    gpu_hours: float


@dataclass(frozen=True)
class Plan:
    """What an experiment takes on a cluster. `randcond plan --json` prints these fields."""

    experiment: str
    gpus: int
    nodes: int
    engine: EngineKind
    micro_batch: int
    accumulation: int
    global_batch: int
    memory_gb: dict[str, float]  # per GPU, by part
    needed_gb: float  # sum of the parts
    usable: float  # share of a GPU's memory
    fits: bool
    knobs: list[tuple[str, float]]  # if it does not fit: overrides that make it fit, and the GB then needed
    efficiency: float  # share of the peak that a full GPU reaches
    step_seconds: float
    arithmetic_seconds: float
    text_share: float  # of the arithmetic: encoding captions by language models (T5, Qwen3)
    idle_seconds: float
    full_at: int  # micro-batch that fills a GPU
    filled: float  # cores that the micro-batch keeps busy, as a share of a full GPU's
    traffic_seconds: float
    traffic_gb: float  # sent per GPU and step
    samples_per_second: float
    stages: dict[str, StageCost]
    gpu: Gpu


def _splits(config: Config) -> int:
    """Returns the number of splits of which each has eval.size captions."""
    return 2 if config.eval.unseen or config.cache.exclude else 1


def images_drawn(config: Config) -> int:
    """Returns the number of images that an evaluation draws of each network."""
    ev = config.eval
    if ev.size:
        return ev.size * _splits(config)
    return WHOLE_SPLIT if ev.unseen else WHOLE_LIST


def stage_hours(config: Config, sizes: Sizes, cluster: Cluster, efficiency: float, step: float) -> dict[str, StageCost]:
    """Returns the cost of each stage.

    In caching and evaluation, each GPU works on whole shards or compute batches.
    `step`: seconds of a training step.
    """
    rate = 1e12 * cluster.gpu.tflops * efficiency  # FLOP/s of one GPU
    cache, ev = config.cache, config.eval
    # Guidance takes two teacher calls per step. Encoding a real image costs less than decoding one.
    drawn = (sizes.decode if cache.images else 2 * cache.steps * sizes.teacher.flop) / rate
    shards = -(-cache.size // cache.shard_size)
    images, splits = images_drawn(config), _splits(config)
    batch = ev.batch or DRAWN_AT_ONCE
    chunks = -(-images // batch)
    bench = BENCH_PROMPTS * len(ev.compbench.categories) * ev.compbench.images if ev.compbench.lists else 0
    bench += GENEVAL_PROMPTS * ev.geneval.images if ev.geneval.prompts else 0
    bench += (ev.geneval2.size or GENEVAL2_PROMPTS) if ev.geneval2.prompts else 0
    bench_chunks = -(-bench // batch)
    eval_sizes = counted(config, "eval")
    drawing = {"teacher": eval_sizes.teacher.flop, "student": eval_sizes.student.flop}
    steps = protocol_of(ev).steps or LIBRARY_STEPS
    image = sum(2 * steps * drawing[who] + eval_sizes.decode for who in ev.of) / rate
    train = config.train
    share = min(1.0, train.eval_size * splits / images) if train.eval_size else 1.0
    student = (2 * steps * eval_sizes.student.flop + eval_sizes.decode) / rate
    seconds = {
        "cache": -(-shards // cluster.ranks) * min(cache.shard_size, cache.size) * drawn,
        "train": train.steps * step + train.evaluations * share * -(-chunks // cluster.ranks) * batch * student,
        "eval": (-(-chunks // cluster.ranks) + -(-bench_chunks // cluster.ranks)) * batch * image,
    }
    samples = {
        "cache": cache.size,
        "train": config.train.steps * config.train.global_batch,
        "eval": images + bench,
    }
    return {
        stage: StageCost(samples[stage], spent / 3600, spent / 3600 * cluster.ranks) for stage, spent in seconds.items()
    }


def plan(config: Config, sizes: Sizes, cluster: Cluster, efficiency: float) -> Plan:
    """Returns the plan of one experiment on one cluster.

    Raises UserError if the global batch does not divide over the cluster.
    """
    config = with_planned_micro_batch(config, sizes, cluster)
    micro, accumulation = batch_shape(config.train.global_batch, cluster.ranks, config.engine.micro_batch)
    memory = training_memory(config, sizes, cluster)
    step = step_seconds(config, sizes, cluster, efficiency)
    enough = fits(memory, cluster)
    return Plan(
        experiment=config.name,
        gpus=cluster.ranks,
        nodes=cluster.nodes,
        engine=config.engine.engine_kind,
        micro_batch=micro,
        accumulation=accumulation,
        global_batch=config.train.global_batch,
        memory_gb={part: size / 1e9 for part, size in memory.items()},
        needed_gb=sum(memory.values()) / 1e9,
        usable=USABLE,
        fits=enough,
        knobs=[] if enough else knobs(config, sizes, cluster),
        efficiency=efficiency,
        step_seconds=step.whole,
        arithmetic_seconds=step.arithmetic,
        text_share=step.text_share,
        idle_seconds=step.idle,
        full_at=FULL,
        filled=filled(sizes, cluster.gpu, micro),
        traffic_seconds=step.traffic,
        traffic_gb=step_traffic(config, sizes, cluster).sent / 1e9,
        samples_per_second=config.train.global_batch / step.whole,
        stages=stage_hours(config, sizes, cluster, efficiency, step.whole),
        gpu=cluster.gpu,
    )


SWEEP_GPUS = 1024
SWEEP_MICRO = (1, 2, 4, 8, 16, 32, 64, 128)


def _dividing(config: Config, cluster: Cluster) -> list[dict[str, Any]]:
    """Returns the settings of the engines to try. Leaves out those whose groups don't divide the GPUs."""
    divides = cluster.ranks % (config.engine.shard_group or cluster.per_node) == 0
    return [ENGINES[kind].settings for kind in SWEEP_ENGINES if divides or not ENGINES[kind].in_groups]


def sweep(config: Config, sizes: Sizes, gpu: Gpu, per_node: int, efficiency: float) -> list[Plan]:
    """Returns a plan for each engine, micro-batch and number of hosts over which the global batch divides.

    Goes up to 1,024 GPUs. Raises UserError if the global batch divides over none of them.
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
        raise UserError(
            f"train.global_batch: {config.train.global_batch} does not divide over any number of hosts "
            f"with {per_node} GPUs"
        )
    return rows


def curve(config: Config, sizes: Sizes, gpu: Gpu, per_node: int, efficiency: float) -> list[Plan]:
    """Returns the fastest plan that fits, over all engines and micro-batches, for each number of GPUs.

    The numbers are 1, 2, 4, ... GPUs of one host, then 1, 2, 4, ... whole hosts, up to 1,024 GPUs.
    Raises UserError if nothing fits, or the global batch divides over none of them.
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
        fitting = [row for row in found if row.fits]
        if fitting:  # the simplest engine within 3 % of the fastest; SWEEP_ENGINES starts with the simplest
            enough = 0.97 * max(row.samples_per_second for row in fitting)
            rows.append(next(row for row in fitting if row.samples_per_second >= enough))
    if not rows:
        raise UserError(
            f"train.global_batch: no number of these GPUs divides {config.train.global_batch} and has enough memory"
        )
    return rows
