"""What makes a stage fit a device, in words: settings, and other folders where work that was begun refuses them."""

from pathlib import Path

from randcond.launch.config.paths import eval_folder
from randcond.launch.config.sections import Config
from randcond.launch.device.batches import recorded_cache_batch, recorded_eval_batch
from randcond.launch.device.drawing import DrawingStage, during_training, largest_batch
from randcond.launch.planning.costs import Cluster, Sizes
from randcond.launch.planning.fitting import Change, overrides, ways_to_fit

_ROUNDED = {"teacher.dtype", "teacher.text_dtype"}  # change the numbers of every stage
_LOWER = {"fp32": "bf16", "bf16": "int8"}  # teacher.dtype -> one that takes less


def training_remedy(config: Config, sizes: Sizes, cluster: Cluster) -> str:
    """Returns what makes a training fit. `config`: with a micro-batch."""
    found = [_with_folders(change, config) for change, _ in ways_to_fit(config, sizes, cluster)]
    return f"set {'; or '.join(found)}" if found else "no setting does; use a smaller student, or another device"


def drawing_remedy(config: Config, sizes: Sizes, cluster: Cluster, stage: DrawingStage, beside: int = 0) -> str:
    """Returns what makes caching or evaluation fit. `beside`: bytes that a training holds during its evaluations."""
    batch = largest_batch(config, sizes, cluster, stage)
    if beside and batch:
        batch = largest_batch(during_training(config), sizes, cluster, stage, beside)
        lower = f"eval.batch={batch} or " if batch else ""
        return f"an evaluation needs this beside the training; set {lower}train.eval_every=0, and evaluate afterwards"
    if not batch:
        dtypes = [f"teacher.dtype={dtype}"] if (dtype := _LOWER.get(config.teacher.dtype)) else []
        scored = stage == "eval" and (config.eval.metrics or during_training(config) != config)
        metrics = ["fewer eval.metrics and benchmarks"] if scored else []
        return f"use {' or '.join([*dtypes, *metrics, 'another device'])}"
    set_it = f"set {stage}.batch={batch}"
    begun = recorded_cache_batch(config) if stage == "cache" else recorded_eval_batch(config)
    if not begun:
        return f"{set_it}, or {stage}.batch=null for the largest that fits"
    if stage == "cache":
        return f"{set_it} paths.cache=NEW: the one at {config.paths.cache} was begun in batches of {begun}"
    own = eval_folder(config)
    removed = f", and remove {own}" if (own / "plan.json").is_file() else ""
    return f"{set_it} paths.reference=NEW{removed}: what is there was begun in batches of {begun}"


def host_remedy(config: Config) -> str:
    """Returns what makes a training's checkpoints fit the host's memory."""
    ema = "" if config.engine.ema == "off" else "engine.ema=off, "
    text = "a smaller teacher.text_cache_gb, " if config.teacher.text_cache_gb else ""
    return f"use {ema}{text}a smaller student, or hosts with more memory"


def _with_folders(change: Change, config: Config) -> str:
    """Returns a change as overrides. Work that was begun with other numbers stays where it is, so it adds folders."""
    paths, rounded = config.paths, not change.keys().isdisjoint(_ROUNDED)
    begun = {
        "cache": (Path(paths.cache) / "plan.json").is_file() and rounded,
        "reference": (Path(paths.reference) / "plan.json").is_file() and rounded,
        "run": any(Path(paths.run, "checkpoints").glob("step-*")) and (rounded or "train.optimizer" in change),
    }
    return " ".join([overrides(change), *(f"paths.{name}=NEW" for name, is_begun in begun.items() if is_begun)])
