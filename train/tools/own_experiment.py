"""Chooses the settings of a run for a person's own teacher: what fits the device, in the hours that there are.

In: a teacher, the number of captions, a device, hours. Out: an experiment's settings, with its forecast.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Config
from randcond.launch.device.drawing import LARGEST, grid_memory
from randcond.launch.device.forecast import StageForecast, efficiency_of, forecast
from randcond.launch.device.here import Here
from randcond.launch.errors import UserError
from randcond.launch.planning.costs import Cluster, counted
from randcond.launch.planning.fitting import USABLE, Change, changed, fewest_changes, with_planned_micro_batch
from randcond.launch.planning.planner import plan

CACHING = 0.25  # share of the hours that the teacher draws latents
TRAINING = 0.65  # share of the training
DRAWING = 0.05  # share of the pictures; the rest is for the starts
LATENTS = 212_776  # the paper's N: more latents are not needed
PAPERS_BATCH, SMALLEST_BATCH = 256, 16
ENOUGH_STEPS = 20_000  # a smaller batch is chosen before fewer steps
FEWEST_STEPS = 100
PASSES = 10_000  # over the latents, at most. The training of the paper makes 150, with its smallest cache 3,200
FEWEST_PICTURES = 4
MARGIN = 1.25  # between the hours that a message asks for and those that are just enough


@dataclass(frozen=True)
class Choice:
    """The settings of a run, and what they take."""

    config: Config
    savers: Change  # settings that save memory, without which it would not fit
    is_short: bool  # there are too few latents to train for all of the hours
    stages: list[StageForecast]
    samples_per_second: float

    @property
    def hours(self) -> float:
        """Hours of all stages together."""
        return sum(stage.hours for stage in self.stages)


def choose(file: Path, captions: int, here: Here, hours: float | None) -> Choice:
    """Returns the settings for an experiment's YAML file, in which everything but the sizes is set.

    captions: number of distinct captions in its sources. hours: for all stages on one device; None: the fewest that
    make sense.
    Raises UserError if no setting makes the training fit, or if the hours are too few.
    """
    config = load_config(str(file))
    cluster = Cluster(here.gpu, 1, 1)
    sizes = counted(config)
    savers = fewest_changes(config, sizes, cluster)
    if savers is None:
        raise UserError(
            f"the training of {config.student.rule} does not fit the {here.gpu.memory_gb:g} GB of {here.name} with any "
            f"setting; choose a smaller student (`randcond students` lists them)"
        )
    config = changed(config, savers)
    if hours is None:
        hours = _enough(_with_batch(config, SMALLEST_BATCH), here)
    batch = PAPERS_BATCH
    while batch > SMALLEST_BATCH and (
        captions < 4 * batch or _steps(_with_batch(config, batch), here, hours) < ENOUGH_STEPS
    ):
        batch //= 2
    config = _with_batch(config, batch)
    steps, latents = _steps(config, here, hours), min(LATENTS, captions, _latents(config, here, hours))
    if captions < batch:
        raise UserError(f"--captions: only {captions:,} captions; give at least {batch}")
    if steps < FEWEST_STEPS or latents < batch:
        raise UserError(
            f"--hours: in {hours:g} hours this device makes only {int(latents):,} latents and {int(steps):,} steps of "
            f"{batch} samples; give at least {float(f'{_enough(config, here):.2g}'):g}"
        )
    steps, latents = _rounded(steps), _rounded(latents) if latents < captions else captions
    enough_steps = _rounded(PASSES * latents / batch)
    # A shard holds whole compute batches. One of 997 latents would be drawn one by one, because 997 is a prime.
    shard = min(config.cache.shard_size, -(-latents // LARGEST) * LARGEST)
    config = replace(
        config,
        cache=replace(config.cache, size=latents, shard_size=shard),
        train=replace(config.train, steps=min(steps, enough_steps)),
        eval=replace(config.eval, size=_pictures(config, captions, here, hours)),
    )
    grid = grid_memory(with_planned_micro_batch(config, sizes, cluster), sizes, cluster)
    if grid > USABLE * 1e9 * here.gpu.memory_gb:
        config = replace(config, train=replace(config.train, sample_every=0))
    stages = list(forecast(config, cluster, here))
    speed = plan(config, sizes, cluster, efficiency_of(here)).samples_per_second
    return Choice(config, savers, steps > enough_steps, stages, speed)


def _with_batch(config: Config, batch: int) -> Config:
    return replace(config, train=replace(config.train, global_batch=batch))


def _enough(config: Config, here: Here) -> float:
    """Returns hours for the fewest steps, and for the latents of a batch."""
    batch = config.train.global_batch
    return MARGIN * max(FEWEST_STEPS / _steps(config, here, 1.0), batch / _latents(config, here, 1.0))


def _hours_of(config: Config, here: Here, stage: str, **sizes: int) -> float:
    """Returns the predicted hours of one stage for these sizes."""
    size = sizes.get("size", 1024)
    config = replace(
        config,
        cache=replace(config.cache, size=size, shard_size=size),
        train=replace(config.train, steps=sizes.get("steps", 1000)),
        eval=replace(config.eval, size=sizes.get("pictures", config.eval.size)),
    )
    return plan(config, counted(config), Cluster(here.gpu, 1, 1), efficiency_of(here)).stages[stage].hours


def _steps(config: Config, here: Here, hours: float) -> float:
    """Returns the number of training steps that fit their share of the hours."""
    return 1000 * TRAINING * hours / _hours_of(config, here, "train")


def _latents(config: Config, here: Here, hours: float) -> float:
    """Returns the number of latents that fit their share of the hours."""
    return 1024 * CACHING * hours / _hours_of(config, here, "cache")


def _pictures(config: Config, captions: int, here: Here, hours: float) -> int:
    """Returns the number of pictures of each network that fit their share of the hours."""
    affordable = 1024 * DRAWING * hours / _hours_of(config, here, "eval", pictures=1024)
    return min(captions, max(FEWEST_PICTURES, min(config.eval.size or captions, int(affordable))))


def _rounded(number: float) -> int:
    """Returns a number rounded down to two digits.

    >>> _rounded(23871.4), _rounded(57.0)
    (23000, 57)
    """
    digits = max(0, len(str(int(number))) - 2)
    return int(number) // 10**digits * 10**digits
