"""A training step's time on a cluster: arithmetic, what a small batch leaves idle, and the engine's traffic.

In: an experiment, its costs, a cluster, an efficiency (the share of the peak that a full GPU reaches). Out: seconds.
"""

from dataclasses import dataclass

from randcond.launch.config.batch import batch_shape
from randcond.launch.config.gpus import Gpu
from randcond.launch.config.sections import Config
from randcond.launch.planning.costs import Cluster, Sizes, sharding
from randcond.model_zoo.cost.gpu_occupancy import Work, occupancy
from randcond.model_zoo.cost.memory import LIVE, persistent

FULL = 64  # samples at once that fill a GPU: an efficiency is of such a micro-batch
SHORTEST_KERNEL = 5e-6  # seconds; assumed: with it MLPerf's curve is met to 1, 4 and 15 % (64, 512, 1,024 GPUs)


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
    parts = [ring_traffic(group, size * ring(group), cluster)]
    if group < how.ranks:  # the groups' gradients are brought together, each GPU's share over its own card
        across = accumulation * 2 * 4 * total / group * ring(how.ranks // group)
        parts.append(Traffic(across, across / (1e9 * gpu.across_gb_s)))
    if config.engine.teacher == "sharded":
        low = 2 if config.teacher.dtype == "bf16" else 4
        parts.append(ring_traffic(how.ranks, accumulation * low * sizes.teacher.parameters * ring(how.ranks), cluster))
    return Traffic(sum(part.sent for part in parts), sum(part.seconds for part in parts))


def ring_traffic(ranks: int, size: float, cluster: Cluster) -> Traffic:
    """What it takes each GPU to send so many bytes to its neighbour in a ring over `ranks`."""
    seconds = size / (1e9 * cluster.gpu.within_gb_s)
    if ranks > cluster.per_node:
        seconds = max(seconds, size / cluster.per_node / (1e9 * cluster.gpu.across_gb_s))
    return Traffic(size, seconds)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by part."""

    arithmetic: float  # at the efficiency of a full GPU
    idle: float  # more than that where the micro-batch is small: cores without a tile, kernels at their shortest
    traffic: float
    beneath: float  # share of the computing that traffic can run beneath

    @property
    def whole(self) -> float:
        """The step."""
        computing = self.arithmetic + self.idle
        return computing + max(0.0, self.traffic - self.beneath * computing)


def step_seconds(config: Config, sizes: Sizes, cluster: Cluster, efficiency: float) -> StepTime:
    """A training step's time. `efficiency`: the share of the peak that a micro-batch of 64 reaches."""
    passes = student_passes(config)
    flop = sizes.teacher.flop + passes * sizes.student.flop
    kernels = sizes.teacher_work.kernels + passes * sizes.student_work.kernels
    arithmetic = flop * config.train.global_batch / cluster.ranks / (1e12 * cluster.gpu.tflops * efficiency)
    micro, accumulation = batch_shape(config.train.global_batch, cluster.ranks, config.engine.micro_batch)
    idle = idle_seconds(arithmetic, filled(sizes, cluster.gpu, micro), kernels * accumulation, micro)
    traffic = step_traffic(config, sizes, cluster).seconds
    return StepTime(arithmetic, idle, traffic, hiding_share(config, sizes))


def student_passes(config: Config) -> int:
    """A step's arithmetic of the student, in forwards: its own, two for its backward, one more where it is redone."""
    return 4 if config.engine.activation_checkpointing else 3


def hiding_share(config: Config, sizes: Sizes) -> float:
    """The share of a step's computing that runs beside the engine's traffic.

    None for stages 0 to 2, which reduce after the backward pass. FSDP2 and stage 3 gather and reduce beside the
    student's passes, while the teacher's forward has nothing to hide, except where the teacher is sharded too.
    """
    engine = config.engine
    if engine.kind != "fsdp" and engine.zero_stage != 3:
        return 0.0
    if engine.teacher == "sharded":
        return 1.0
    students = student_passes(config) * sizes.student.flop
    return students / (sizes.teacher.flop + students)


def idle_seconds(arithmetic: float, share: float, kernels: int, micro: int) -> float:
    """What a micro-batch adds to a full GPU's arithmetic: `share` of its cores busy, kernels that can't be shorter."""
    return arithmetic * (1 / share - 1) + SHORTEST_KERNEL * kernels * max(0.0, 1 - micro / FULL)


def filled(sizes: Sizes, gpu: Gpu, micro: int) -> float:
    """How many of a GPU's cores a micro-batch keeps busy, by what a full one does; 1 from there on."""
    return full_share(sizes.teacher_work, sizes.student_work, micro, gpu)


def full_share(teacher: Work | None, student: Work, micro: int, gpu: Gpu) -> float:
    """The same of any two networks, the second of which is trained."""
    small, full = (occupancy(teacher, student, batch, gpu.cores) for batch in (min(micro, FULL), FULL))
    return min(1.0, small / full)
