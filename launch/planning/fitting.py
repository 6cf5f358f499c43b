"""What a training takes of a GPU's memory, by part, and which settings make it fit."""

from dataclasses import replace
from typing import Any

from randcond.launch.config.engines import AUTO, ENGINES, EngineKind, batch_shape
from randcond.launch.config.sections import Config
from randcond.launch.planning.costs import Cluster, Sizes, compared, sharding, weight_bytes
from randcond.model_zoo.cost.memory import state_memory

USABLE = 0.95  # share of a GPU's memory
SWEEP_ENGINES = (  # the simplest first
    EngineKind.ZERO_1,
    EngineKind.ZERO_2,
    EngineKind.ZERO_3,
    EngineKind.FSDP_FULL,
    EngineKind.FSDP_HYBRID,
)

Change = dict[str, Any]  # dotted key -> value


def training_memory(config: Config, sizes: Sizes, cluster: Cluster) -> dict[str, int]:
    """Returns the bytes per GPU during training, by part."""
    engine, dtype = config.engine, config.teacher.dtype
    low = weight_bytes(dtype)
    micro, _ = batch_shape(config.train.global_batch, cluster.ranks, engine.micro_batch)
    state = state_memory(sizes.shapes, sizes.blocks, sharding(config, cluster))
    denoiser = sizes.teacher_bytes(dtype)
    if engine.teacher == "sharded":
        gathered = sorted(sizes.teacher_blocks)[-2:]  # one block in use, the next one prefetched
        denoiser = denoiser // cluster.ranks + low * sum(gathered)
    return {
        "teacher denoiser": denoiser,
        "text encoders and VAE": sizes.text_bytes(config.teacher) + (4 if sizes.upcasts_vae else low) * sizes.vae,
        "student weights": state.weights,
        "gradients": state.gradients,
        "optimizer, fp32 weights, EMA": state.optimizer,
        "reduction buckets": state.buffers,
        "gathered in a step": state.transient,
        "activations": micro * sizes.activations(engine.precision, engine.activation_checkpointing, compared(config)),
        "teacher's graph": micro * sizes.teacher_peak(dtype) if _graph(config, cluster) else 0,
        # While the activations are held. Otherwise it is over before the forward pass, and takes no more than they do.
        "text encoding": micro * sizes.text_peak(config.teacher) if engine.text_ahead else 0,
        "CUDA, NCCL, slack": int(1e9 * cluster.gpu.overhead_gb),
    }


def _graph(config: Config, cluster: Cluster) -> bool:
    """Returns True if the teacher is one CUDA graph, which keeps the memory of its forward pass."""
    engine = config.engine
    if engine.teacher_graph == AUTO:
        return engine.compile in ("whole", AUTO) and engine.teacher == "replicated" and not cluster.gpu.host
    return bool(engine.teacher_graph)


def fits(memory: dict[str, int], cluster: Cluster) -> bool:
    """Returns True if a GPU has enough memory."""
    return sum(memory.values()) <= USABLE * 1e9 * cluster.gpu.memory_gb


def knobs(config: Config, sizes: Sizes, cluster: Cluster) -> list[tuple[str, float]]:
    """Returns the changes of ways_to_fit() as overrides."""
    return [(overrides(change), gb) for change, gb in ways_to_fit(config, sizes, cluster)]


def ways_to_fit(config: Config, sizes: Sizes, cluster: Cluster) -> list[tuple[Change, float]]:
    """Returns changes that make the training fit, as (change, GB per GPU), from harmless to costly.

    Each change is enough by itself. If no single one is, returns as many of them together as are needed. Empty if all
    together are not enough.
    """
    micro, _ = batch_shape(config.train.global_batch, cluster.ranks, config.engine.micro_batch)
    micros: list[Change] = [{"engine.micro_batch": size} for size in range(micro - 1, 0, -1) if micro % size == 0]
    language = any(text.is_language_model for text in sizes.networks.text_encoders)
    same, other = _same_numbers(config, cluster, language), _other_numbers(config, language)
    engines, sharded = _sharding(config, cluster)

    def needed(change: Change) -> float | None:
        memory = training_memory(changed(config, change), sizes, cluster)
        return sum(memory.values()) / 1e9 if fits(memory, cluster) else None

    every = [*micros, *same, *engines, *sharded, *other]
    found = [(change, gb) for change in every if (gb := needed(change)) is not None]
    if not found:
        together: Change = {}
        # A sharded teacher is stored in bf16.
        rounding = [change for change in other if not sharded or "teacher.dtype" not in change]
        for change in (*micros[-1:], *same, *engines[-1:], *sharded, *rounding):
            together |= change
            if (gb := needed(together)) is not None:
                found = [(together, gb)]
                break
    smaller_micros = [change for change, _ in found if "engine.micro_batch" in change][1:]  # the largest is enough
    return [(change, gb) for change, gb in found if change not in smaller_micros]


def _same_numbers(config: Config, cluster: Cluster, language: bool) -> list[Change]:
    """Returns what saves memory, changes no result and is not set yet. language: a language model encodes text."""
    text: list[Change] = [{"teacher.text_device": "cpu"}]
    checkpointing: list[Change] = [{"engine.activation_checkpointing": True}]
    ema: list[Change] = [{"engine.ema": "cpu"}]
    return [
        *(checkpointing if not config.engine.activation_checkpointing else []),
        *(ema if config.engine.ema == "device" and not cluster.gpu.host else []),
        *(text if language and config.teacher.text_device == "device" and not cluster.gpu.host else []),
    ]


def _other_numbers(config: Config, language: bool) -> list[Change]:
    """Returns what saves memory by rounding, and is not set yet. language: a language model encodes text."""
    text: list[Change] = [{"teacher.text_dtype": "int8"}]
    moments: list[Change] = [{"train.optimizer": "adamw_8bit"}]
    teacher: list[Change] = [{"teacher.dtype": "int8", **_switched_off(config, "teacher_fp8")}]
    return [
        *(text if language and not config.teacher.text_in_8_bits else []),
        *(moments if config.train.optimizer == "adamw" else []),
        *(teacher if not config.teacher.in_8_bits and config.engine.teacher == "replicated" else []),
    ]


def _sharding(config: Config, cluster: Cluster) -> tuple[list[Change], list[Change]]:
    """Returns the engines and the sharding of the teacher, which save memory and change no result.

    On one GPU, FSDP2 saves the weights and gradients in the compute dtype: it makes them block by block.
    """
    if cluster.ranks == 1:
        fsdp = ENGINES[EngineKind.FSDP_FULL].settings if config.engine.kind != "fsdp" else {}
        return [{f"engine.{key}": value for key, value in fsdp.items()}] if fsdp else [], []
    engines: list[Change] = [
        {f"engine.{key}": value for key, value in ENGINES[kind].settings.items()}
        for kind in SWEEP_ENGINES
        if not ENGINES[kind].in_groups
    ]
    # A sharded teacher can't use a CUDA graph, fp8 or int8.
    dtype: Change = {"teacher.dtype": "bf16"} if config.teacher.in_8_bits else {}
    return engines, [{"engine.teacher": "sharded", **_switched_off(config, "teacher_graph", "teacher_fp8"), **dtype}]


def _switched_off(config: Config, *names: str) -> Change:
    """Returns the changes that switch off those of these options of the engine that are on."""
    return {f"engine.{name}": False for name in names if getattr(config.engine, name) is True}


def changed(config: Config, change: Change) -> Config:
    """Returns a configuration with other settings."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in change.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return replace(config, **{name: replace(getattr(config, name), **keys) for name, keys in sections.items()})


def overrides(change: Change) -> str:
    """Returns changes of settings as command-line overrides."""
    return " ".join(f"{key}={str(value).lower()}" for key, value in change.items())


def fewest_changes(config: Config, sizes: Sizes, cluster: Cluster) -> Change | None:
    """Returns the changes without which not one sample fits: {} if none is needed, None if no change is enough."""
    one = changed(config, {"engine.micro_batch": 1})
    if fits(training_memory(one, sizes, cluster), cluster):
        return {}
    return next((change for change, _ in ways_to_fit(one, sizes, cluster)), None)


def largest_micro_batch(config: Config, sizes: Sizes, cluster: Cluster) -> int | None:
    """Returns the largest micro-batch that fits a GPU, None if not even one sample does.

    Raises UserError if the global batch does not divide over the cluster.
    """
    per_rank, _ = batch_shape(config.train.global_batch, cluster.ranks, None)
    for micro in (size for size in range(per_rank, 0, -1) if per_rank % size == 0):
        if fits(training_memory(changed(config, {"engine.micro_batch": micro}), sizes, cluster), cluster):
            return micro
    return None


def with_planned_micro_batch(config: Config, sizes: Sizes, cluster: Cluster) -> Config:
    """Returns the configuration with a micro-batch. If it has none: the largest that fits, or 1 if nothing fits."""
    if config.engine.micro_batch is not None:
        return config
    return changed(config, {"engine.micro_batch": largest_micro_batch(config, sizes, cluster) or 1})
