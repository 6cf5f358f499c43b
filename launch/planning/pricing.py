"""GPU-hours and disk space of many experiments together. A shared cache, pool, run or teacher evaluation counts once.

In: configurations, a cluster, an efficiency. Out: artefacts by folder, with GPU-hours and GB.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from randcond.launch.config.sections import Config
from randcond.launch.planning.costs import Cluster, Sizes, counted
from randcond.launch.planning.planner import images_drawn, plan, stage_hours
from randcond.model_zoo.checkpoints.layouts import layout_of

CAPTION = 63  # bytes per caption in a pool, measured over 20M LAION captions
WHOLE = 50_000_000  # captions of the full pool (pool.whole): about 4 of the 32 files of LAION-400M
SAMPLE = 3072  # bytes of a cached sample besides its latent: tar headers, caption, metadata
CHECKPOINT, EXPORT = 12, 4  # bytes per parameter: fp32 weights and two moments; a student in fp32
EMA = 4  # bytes per parameter, in a checkpoint and as a second student
ROW = 4 * (2048 + 1008 + 1)  # bytes of the features of an image: Inception and CLIP


@dataclass(frozen=True)
class Artefact:
    """A folder that experiments write, with its cost."""

    kind: str  # cache, pool, reference, run
    folder: str
    gpu_hours: float = 0.0
    gb: float = 0.0


class Prices:
    """Computes what experiments cost on one cluster."""

    def __init__(self, cluster: Cluster, efficiency: float) -> None:
        self.cluster, self.efficiency = cluster, efficiency

    def of(self, config: Config) -> tuple[list[Artefact], bool]:
        """Returns the artefacts of an experiment, and True if its training fits the GPUs' memory.

        The list is empty if the costs of the experiment's networks are unknown.
        """
        if not layout_of(config.teacher.path):
            return [], True
        sizes = counted(config)
        teacher = self._evaluating(config, sizes, "teacher")
        reference = Artefact("reference", config.paths.reference, teacher)
        if not config.trains:
            return [reference], True
        planned = plan(config, sizes, self.cluster, self.efficiency)
        student = self._evaluating(config, sizes, "student")
        hours = {stage: cost.gpu_hours for stage, cost in planned.stages.items()}
        return [
            Artefact("cache", config.paths.cache, hours["cache"], cache_bytes(config, sizes) / 1e9),
            Artefact("pool", config.paths.pool, gb=(config.pool.size or 0) * CAPTION / 1e9),
            *([Artefact("pool", config.pool.whole, gb=WHOLE * CAPTION / 1e9)] if config.pool.size else []),
            *([reference] if "teacher" in config.eval.of else []),
            Artefact("run", config.paths.run, hours["train"] + student, run_bytes(config, sizes) / 1e9),
        ], planned.fits

    def _evaluating(self, config: Config, sizes: Sizes, who: Literal["teacher", "student"]) -> float:
        """Returns the GPU-hours of evaluating the teacher or the student alone."""
        one = replace(config, eval=replace(config.eval, of=[who]))
        return stage_hours(one, sizes, self.cluster, self.efficiency, 0.0)["eval"].gpu_hours


def cache_bytes(config: Config, sizes: Sizes) -> int:
    """Returns the size of a latent cache, in bytes."""
    return int(config.cache.size * (2 * math.prod(sizes.latent_shape) + SAMPLE))


def run_bytes(config: Config, sizes: Sizes) -> int:
    """Returns the largest size that a run's folder can reach, in bytes.

    Each evaluation during training keeps its denoiser and its features, and may add a new best student.
    """
    train = config.train
    kept = min(train.keep_checkpoints, -(-train.steps // train.checkpoint_every)) + train.kept_for_good
    kept += 1  # one more while the next one is written
    best = 4 * (sizes.trained + sizes.text + sizes.vae)
    drawn = ROW * images_drawn(config)
    ema = 0 if config.engine.ema == "off" else EMA
    state = sizes.trained * ((CHECKPOINT + ema) * kept + EXPORT + ema)
    return int(state + train.evaluations * (2 * sizes.trained + drawn + best) + drawn)


def evaluation_bytes(config: Config) -> int:
    """Returns the size of the evaluations of teacher and student, in bytes: features and kept images."""
    kept = 3 * (config.eval.resolution or 512) ** 2 * min(config.eval.shown, images_drawn(config))
    return (ROW * images_drawn(config) + kept) * len(config.eval.of)


def together(artefacts: Iterable[Artefact]) -> tuple[float, float]:
    """Returns the GPU-hours and GB of artefacts. Each folder counts once, with the highest GPU-hours listed for it."""
    found: dict[tuple[str, str], Artefact] = {}
    for each in artefacts:
        key = each.kind, each.folder
        if key not in found or each.gpu_hours > found[key].gpu_hours:
            found[key] = each
    return sum(each.gpu_hours for each in found.values()), sum(each.gb for each in found.values())
