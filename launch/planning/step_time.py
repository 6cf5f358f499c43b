"""The time of a training step on a cluster: arithmetic, idle cores of small batches, and the engine's traffic.

In: an experiment, its costs, a cluster, an efficiency (share of the peak that a full GPU reaches). Out: seconds.
"""

from dataclasses import dataclass

from randcond.launch.config.engines import EngineKind, batch_shape
from randcond.launch.config.gpus import Gpu
from randcond.launch.config.sections import Config
from randcond.launch.planning.costs import Cluster, Sizes, sharding, weight_bytes
from randcond.model_zoo.cost.gpu_occupancy import Work, occupancy
from randcond.model_zoo.cost.memory import LIVE, persistent

HOST_LINK = 25e9  # bytes/s from the host's memory to a GPU, over PCIe 4
FULL = 64  # micro-batch that fills a GPU; efficiencies refer to a micro-batch of this size


@dataclass(frozen=True)
class Traffic:
    """What one GPU sends in a step. In a ring it receives the same amount."""

    sent: float  # bytes
    seconds: float  # at the links' full speed


def step_traffic(config: Config, sizes: Sizes, cluster: Cluster) -> Traffic:
    """Returns the traffic of the engine's collectives for the student, and for a sharded teacher.

    A ring over several hosts enters and leaves each host once. NCCL builds one ring per network card, and each GPU has
    a card. So of the bytes that a GPU sends to its neighbour, the share 1 / (GPUs per host) goes over its card.
    """
    gpu = cluster.gpu
    how = sharding(config, cluster)
    _, accumulation = batch_shape(config.train.global_batch, how.ranks, config.engine.micro_batch)
    low, total = how.compute_bytes, sizes.trained

    def ring(number: int) -> float:
        return (number - 1) / number  # factor of a reduce-scatter or an all-gather; an all-reduce is both

    whole = persistent(sizes.shapes)  # ZeRO-3 gathers these parameters once per step
    # ZeRO-3 gathers these again for the backward pass, because it can't keep them from the forward pass until then.
    again = max(0, total - LIVE // 2)
    size = {  # bytes. Gradients are fp32. DeepSpeed's stages 0 to 2 all-reduce them, which sends them twice
        EngineKind.ZERO_0: 2 * 4 * total,
        EngineKind.ZERO_1: (2 * 4 + low) * total,
        EngineKind.ZERO_2: (accumulation * 2 * 4 + low) * total,
        EngineKind.ZERO_3: accumulation * (4 * total + low * (total - whole + again)) + low * whole,
        EngineKind.FSDP_FULL: accumulation * (2 * low + 4) * total,
        EngineKind.FSDP_GRAD_OP: accumulation * (low + 4) * total,
        EngineKind.FSDP_HYBRID: accumulation * (2 * low + 4) * total,
    }[how.kind]
    group = how.group if how.group else how.ranks
    parts = [ring_traffic(group, size * ring(group), cluster)]
    if group < how.ranks:  # gradients are summed over the groups; each GPU sends its share over its own card
        across = accumulation * 2 * 4 * total / group * ring(how.ranks // group)
        parts.append(Traffic(across, across / (1e9 * gpu.across_gb_s)))
    if config.engine.teacher == "sharded":
        low = weight_bytes(config.teacher.dtype)
        parts.append(ring_traffic(how.ranks, accumulation * low * sizes.teacher.parameters * ring(how.ranks), cluster))
    return Traffic(sum(part.sent for part in parts), sum(part.seconds for part in parts))


def ring_traffic(ranks: int, size: float, cluster: Cluster) -> Traffic:
    """Returns the traffic of a GPU that sends `size` bytes to its neighbour in a ring over `ranks` GPUs."""
    seconds = size / (1e9 * cluster.gpu.within_gb_s)
    if ranks > cluster.per_node:
        seconds = max(seconds, size / cluster.per_node / (1e9 * cluster.gpu.across_gb_s))
    return Traffic(size, seconds)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by part."""

    arithmetic: float  # at the efficiency of a full GPU
    idle: float  # extra time of a small micro-batch: idle cores, and kernels that can't get shorter
    traffic: float
    overlap: float  # share of the computing time in which traffic can run, too
    text_share: float = 0.0  # of the arithmetic: encoding captions by language models

    @property
    def whole(self) -> float:
        """Seconds of the whole step."""
        computing = self.arithmetic + self.idle
        return computing + max(0.0, self.traffic - self.overlap * computing)


def step_seconds(config: Config, sizes: Sizes, cluster: Cluster, efficiency: float) -> StepTime:
    """Returns the time of a training step. `efficiency`: share of the peak that a micro-batch of 64 reaches."""
    passes = student_passes(config)
    text = sizes.text_flop(config.teacher)
    flop = text + sizes.teacher.flop + passes * sizes.student.flop
    kernels = sizes.teacher_work.kernels + passes * sizes.student_work.kernels
    arithmetic = flop * config.train.global_batch / cluster.ranks / (1e12 * cluster.gpu.tflops * efficiency)
    micro, accumulation = batch_shape(config.train.global_batch, cluster.ranks, config.engine.micro_batch)
    idle = idle_seconds(
        arithmetic, filled(sizes, cluster.gpu, micro), kernels * accumulation, micro, cluster.gpu.shortest_kernel
    )
    if config.teacher.text_device == "cpu":  # each micro-batch copies all weights
        idle += accumulation * sizes.loaded_text_bytes(config.teacher) / HOST_LINK
    traffic = step_traffic(config, sizes, cluster).seconds
    return StepTime(arithmetic, idle, traffic, hiding_share(config, sizes), text / flop)


def student_passes(config: Config) -> int:
    """Returns the student's arithmetic in a step, in units of its forward pass.

    The forward pass counts 1 and the backward pass 2. Activation checkpointing repeats the forward pass.
    """
    return 4 if config.engine.activation_checkpointing else 3


def hiding_share(config: Config, sizes: Sizes) -> float:
    """Returns the share of a step's computing time that can overlap with the engine's traffic.

    It is 0 for ZeRO stages 0 to 2, which reduce after the backward pass. FSDP2 and stage 3 gather and reduce during the
    student's passes. The teacher's forward pass has no traffic to overlap with, unless the teacher is sharded, too.
    """
    engine = config.engine
    if not engine.spec.gathers_blocks:
        return 0.0
    if engine.teacher == "sharded":
        return 1.0
    students = student_passes(config) * sizes.student.flop
    return students / (sizes.teacher.flop + students)


def idle_seconds(arithmetic: float, share: float, kernels: int, micro: int, shortest_kernel: float) -> float:
    """Returns the time that a small micro-batch adds to the arithmetic of a full GPU.

    share: share of the cores that it keeps busy (see filled())
    kernels: number of kernels
    shortest_kernel: seconds; no kernel is shorter
    """
    return arithmetic * (1 / share - 1) + shortest_kernel * kernels * max(0.0, 1 - micro / FULL)


def filled(sizes: Sizes, gpu: Gpu, micro: int) -> float:
    """Returns how many cores a micro-batch keeps busy, as a share of those that a full one does; at most 1."""
    return full_share(sizes.teacher_work, sizes.student_work, micro, gpu)


def full_share(teacher: Work | None, student: Work, micro: int, gpu: Gpu) -> float:
    """Returns what filled() returns, for any teacher (None: no teacher) and a student, which is trained."""
    small, full = (occupancy(teacher, student, batch, gpu.cores) for batch in (min(micro, FULL), FULL))
    return min(1.0, small / full)
