"""What many experiments take together: each cache, pool, teacher's evaluation and run once, however many share it.

In: configurations, a cluster, an efficiency. Out: artefacts by folder with GPU-hours and GB, as plain data.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from randcond.launch.config.sections import Config
from randcond.launch.planning.costs import Cluster, Sizes, counted
from randcond.launch.planning.planner import plan, stage_hours
from randcond.model_zoo.networks import layout_of

CAPTION = 63  # bytes of a caption in a pool: LAION's, measured over 20M
WHOLE = 50_000_000  # captions of the pool that parts are taken from: 4 of LAION-400M's 32 files, about
SAMPLE = 3072  # bytes of a cached sample beside its latent: tar headers, caption, metadata
CHECKPOINT, EXPORT = 16, 8  # bytes per parameter: fp32 weights, two moments, EMA; two students in fp32
ROWS = 30_000 * 4 * (2048 + 1008 + 1)  # bytes of what is read from an evaluation's images: Inception's, CLIP's


@dataclass(frozen=True)
class Artefact:
    """A folder that experiments make, and what it takes."""

    kind: str  # cache, pool, reference, run
    folder: str
    gpu_hours: float = 0.0
    gb: float = 0.0


class Prices:
    """Prices experiments on one cluster."""

    def __init__(self, cluster: Cluster, efficiency: float) -> None:
        self.cluster, self.efficiency = cluster, efficiency

    def of(self, config: Config) -> tuple[list[Artefact], bool]:
        """What an experiment makes, and whether it fits the GPUs; nothing where its network's costs are not known."""
        if not layout_of(config.teacher.path):
            return [], True
        sizes = counted(config)
        teacher = self._evaluating(config, sizes, "teacher")
        reference = Artefact("reference", config.paths.reference, teacher)
        if not config.trains:
            return [reference], True
        planned = plan(config, sizes, self.cluster, self.efficiency)
        student = self._evaluating(config, sizes, "student")
        hours = {stage: row["gpu_hours"] for stage, row in planned["stages"].items()}
        channels, side = sizes.networks.unet["in_channels"], sizes.networks.unet["sample_size"]
        return [
            Artefact(
                "cache", config.paths.cache, hours["cache"], config.cache.size * (2 * channels * side**2 + SAMPLE) / 1e9
            ),
            Artefact("pool", config.paths.pool, gb=(config.pool.size or 0) * CAPTION / 1e9),
            *([Artefact("pool", config.pool.whole, gb=WHOLE * CAPTION / 1e9)] if config.pool.size else []),
            *([reference] if "teacher" in config.eval.of else []),
            Artefact("run", config.paths.run, hours["train"] + student, self._run_bytes(config, sizes) / 1e9),
        ], planned["fits"]

    def _evaluating(self, config: Config, sizes: Sizes, who: Literal["teacher", "student"]) -> float:
        one = replace(config, eval=replace(config.eval, of=[who]))
        return stage_hours(one, sizes, self.cluster, self.efficiency, 0.0)["eval"]["gpu_hours"]

    def _run_bytes(self, config: Config, sizes: Sizes) -> float:
        """The most that a run's folder holds: every evaluation's U-Net and rows stay, and each that was the best."""
        train = config.train
        kept = train.keep_checkpoints + train.kept_for_good + 1  # the next one is written beside them
        best = 4 * (sizes.trained + sizes.text + sizes.vae)
        return (
            sizes.trained * (CHECKPOINT * kept + EXPORT) + train.evaluations * (2 * sizes.trained + ROWS + best) + ROWS
        )


def together(artefacts: Iterable[Artefact]) -> tuple[float, float]:
    """GPU-hours and GB of artefacts, each folder once: the most that is asked of it."""
    found: dict[tuple[str, str], Artefact] = {}
    for each in artefacts:
        key = each.kind, each.folder
        if key not in found or each.gpu_hours > found[key].gpu_hours:
            found[key] = each
    return sum(each.gpu_hours for each in found.values()), sum(each.gb for each in found.values())
