"""The host's memory while a training saves a checkpoint: a thread writes a copy, so that the next step need not wait.

In: an experiment, its costs, a cluster. Out: bytes per host.
"""

from randcond.launch.config.sections import Config
from randcond.launch.device.drawing import STATE
from randcond.launch.planning.costs import Cluster, Sizes
from randcond.launch.planning.fitting import training_memory
from randcond.launch.planning.pricing import CHECKPOINT, EMA

_KEPT = (*STATE, "teacher denoiser", "text encoders and VAE", "CUDA, NCCL, slack")  # between two steps


def copied_bytes(config: Config, sizes: Sizes, cluster: Cluster) -> int:
    """Returns the bytes per host of the copy of a checkpoint: fp32, of the values that the host's ranks write."""
    engine = config.engine
    ema = 0 if engine.ema == "off" else EMA
    # Replicas hold the same values, and only the first one writes them.
    hosts = 1 if engine.spec.in_groups or engine.spec.replicated else cluster.nodes
    return sizes.trained * (CHECKPOINT + ema) // hosts


def host_bytes(config: Config, sizes: Sizes, cluster: Cluster) -> int:
    """Returns the bytes per host that a training takes while it saves.

    On a CPU they hold the training itself, without what only a step needs. Beside GPUs: the copy, the EMA with
    `engine.ema: cpu`, and text encoders with `teacher.text_device: cpu`. The cache of encoded captions
    (`teacher.text_cache_gb`) counts whole.
    """
    ranks, teacher = cluster.per_node, config.teacher
    text = sizes.loaded_text_bytes(teacher) if teacher.text_device == "cpu" else 0
    held = copied_bytes(config, sizes, cluster) + ranks * (text + int(1e9 * teacher.text_cache_gb))
    if cluster.gpu.host:
        memory = training_memory(config, sizes, cluster)
        return held + ranks * sum(memory[part] for part in _KEPT)
    return held + (sizes.trained * EMA // cluster.nodes if config.engine.ema == "cpu" else 0)
