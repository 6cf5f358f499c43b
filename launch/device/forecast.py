"""Forecasts memory, disk space and time of every stage on this machine, before any work starts.

In: the experiments that are about to run. Out: one short table, and the errors of what does not fit.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from randcond.launch.cluster.commands import artefact
from randcond.launch.config.engines import batch_shape
from randcond.launch.config.paths import eval_folder, is_url
from randcond.launch.config.sections import Config
from randcond.launch.device.batches import recorded_cache_batch, recorded_eval_batch, recorded_micro_batch
from randcond.launch.device.drawing import (
    DrawingStage,
    drawing_memory,
    during_training,
    grid_memory,
    held_by_training,
    largest_batch,
    largest_eval_batch,
)
from randcond.launch.device.here import Here, device_here
from randcond.launch.device.remedies import drawing_remedy, host_remedy, training_remedy
from randcond.launch.device.saving import host_bytes
from randcond.launch.device.so_far import bytes_written, is_done, share_done
from randcond.launch.planning.costs import Cluster, Sizes, counted
from randcond.launch.planning.fitting import USABLE, with_planned_micro_batch
from randcond.launch.planning.plan_command import ASSUMED_EFFICIENCY
from randcond.launch.planning.planner import plan
from randcond.launch.planning.pricing import CAPTION, cache_bytes, evaluation_bytes, run_bytes

GRIDS = "its sample grids need this beside the training; set train.sample_every=0"
MEASURED_SHARE = 0.5  # of the speed of large matrix products that the networks reach, assumed


@dataclass(frozen=True)
class StageForecast:
    """What one stage takes on this machine."""

    experiment: str
    stage: str
    folder: Path  # that it writes
    batch: str  # samples at once; training: x micro-batches x ranks
    needed_gb: float  # memory per rank; 0: no device is used
    disk_gb: float  # of what is still to be written
    hours: float  # still to go; of an evaluation that was begun: all of it
    done: bool
    remedy: str = ""  # if it does not fit: what would
    host_gb: float = 0.0  # of the host's memory at a checkpoint
    host_remedy: str = ""  # if that does not fit: what would


def efficiency_of(here: Here) -> float:
    """Returns the share of the device's speed that the networks are assumed to reach."""
    return MEASURED_SHARE if here.measured else ASSUMED_EFFICIENCY


def forecast(config: Config, cluster: Cluster, here: Here) -> Iterator[StageForecast]:
    """Yields the forecast of each stage of an experiment on hosts like this machine.

    Raises UserError if the global batch does not divide over the ranks, or OtherNetworks if its networks can't
    be counted.
    """
    ranks = cluster.ranks
    if not config.trains:
        return
    sizes, eval_sizes = counted(config), counted(config, "eval")
    micro = config.engine.micro_batch or recorded_micro_batch(config, ranks)
    config = with_planned_micro_batch(replace(config, engine=replace(config.engine, micro_batch=micro)), sizes, cluster)
    beside = held_by_training(config, sizes, cluster)
    config = _with_drawing_batches(config, sizes, eval_sizes, cluster, beside)
    planned = plan(config, sizes, cluster, efficiency_of(here))
    hours = {stage: cost.hours for stage, cost in planned.stages.items()}
    memory = {
        "cache": _drawing_gb(config, sizes, cluster, "cache"),
        "eval": _drawing_gb(config, eval_sizes, cluster, "eval"),
    }
    evaluating = _drawing_gb(during_training(config), eval_sizes, cluster, "eval") + beside / 1e9 if beside else 0.0
    memory["train"] = max(planned.needed_gb, evaluating, grid_memory(config, sizes, cluster) / 1e9)
    disk = {
        "pool": CAPTION * (config.pool.size or 0),
        "cache": cache_bytes(config, sizes),
        "train": run_bytes(config, sizes),
        "eval": evaluation_bytes(config),
    }
    micro, accumulation = batch_shape(config.train.global_batch, ranks, config.engine.micro_batch)
    batches = {
        "cache": f"{config.cache.batch}",
        "train": f"{micro} x {accumulation} x {ranks}",
        "eval": f"{config.eval.batch}",
    }
    for stage in ("pool", "cache", "train", "eval"):
        if stage == "cache" and is_url(config.paths.cache):
            continue
        done = is_done(stage, config)
        needed = memory.get(stage, 0.0)
        fits = needed <= USABLE * here.gpu.memory_gb
        remedy = "" if fits or done else _remedy(config, stage, sizes, eval_sizes, cluster)
        if remedy and stage == "train" and planned.fits:
            too_large = evaluating > USABLE * here.gpu.memory_gb
            remedy = drawing_remedy(config, eval_sizes, cluster, "eval", beside) if too_large else GRIDS
        yield StageForecast(
            config.name,
            stage,
            eval_folder(config) if stage == "eval" else artefact(stage, config).parent,
            batches.get(stage, ""),
            needed,
            0.0 if done else max(0, disk[stage] - bytes_written(stage, config)) / 1e9,
            0.0 if done else hours.get(stage, 0.0) * (1 - share_done(stage, config)),
            done,
            remedy,
            host_bytes(config, sizes, cluster) / 1e9 if stage == "train" and not done else 0.0,
            host_remedy(config),
        )


def _with_drawing_batches(config: Config, sizes: Sizes, eval_sizes: Sizes, cluster: Cluster, beside: int) -> Config:
    """Returns the configuration with the batches that its stages will use, or 1 where not even one sample fits."""
    cached = config.cache.batch or recorded_cache_batch(config) or largest_batch(config, sizes, cluster, "cache")
    drawn = (
        config.eval.batch
        or recorded_eval_batch(config)
        or largest_eval_batch(config, eval_sizes, cluster, beside)
        or largest_batch(config, eval_sizes, cluster, "eval")
    )
    return replace(config, cache=replace(config.cache, batch=cached or 1), eval=replace(config.eval, batch=drawn or 1))


def _drawing_gb(config: Config, sizes: Sizes, cluster: Cluster, stage: DrawingStage) -> float:
    batch = config.cache.batch if stage == "cache" else config.eval.batch
    assert batch is not None  # forecast() has set it
    return sum(drawing_memory(config, sizes, cluster, stage, batch).values()) / 1e9


def _remedy(config: Config, stage: str, sizes: Sizes, eval_sizes: Sizes, cluster: Cluster) -> str:
    """Returns what makes a stage fit this machine, in words."""
    if stage == "train":
        return training_remedy(config, sizes, cluster)
    if stage == "cache":
        return drawing_remedy(config, sizes, cluster, "cache")
    return drawing_remedy(config, eval_sizes, cluster, "eval")


def table(rows: Sequence[StageForecast], here: Here, ranks: int = 1) -> str:
    """Returns the forecast as text: a line per stage, one for all repetitions of an experiment."""
    usable = USABLE * here.gpu.memory_gb
    source = "measured" if here.measured else f"{ASSUMED_EFFICIENCY:.0%} of its peak, assumed"
    lines = [
        f"on {ranks} x {here.name}, {usable:.1f} GB usable by each; speed: {source}",
        f"  {'':34}{'samples at once':>18}{'memory, GB':>12}{'disk, GB':>10}{'time':>10}",
    ]
    for same in _repetitions(rows):
        row = max(same, key=lambda each: each.needed_gb)
        disk, hours = sum(each.disk_gb for each in same), sum(each.hours for each in same)
        label = f"{row.stage} {row.experiment}" + (f" x {len(same)}" if len(same) > 1 else "")
        memory = f"{row.needed_gb:.1f}" if row.needed_gb else ""
        time = "done" if all(each.done for each in same) else _time(hours) if hours else ""
        line = f"  {label:34}{row.batch:>18}{memory:>12}{disk:10.1f}{time:>10}"
        lines.append(line + ("  DOES NOT FIT" if any(each.remedy for each in same) else ""))
    disk, hours = sum(row.disk_gb for row in rows), sum(row.hours for row in rows)
    return "\n".join([*lines, f"  {'all':64}{disk:10.1f}{_time(hours):>10}"])


def _repetitions(rows: Sequence[StageForecast]) -> Collection[list[StageForecast]]:
    """Returns the rows by stage and experiment. Repetitions differ in seeds and excluded words only."""
    found: dict[tuple[str, str], list[StageForecast]] = {}
    for row in rows:
        found.setdefault((row.stage, row.experiment), []).append(row)
    return found.values()


def faults(rows: Sequence[StageForecast], here: Here) -> Iterator[str]:
    """Yields one sentence for each stage that does not fit into memory, each training whose checkpoints do not, and
    each disk that is too small.
    """
    for same in _repetitions(rows):  # one sentence for all that do not fit
        row = next((each for each in same if each.remedy), None) or max(same, key=lambda each: each.host_gb)
        if row.remedy:
            yield (
                f"{row.experiment}: {row.stage} needs {row.needed_gb:.1f} GB of memory, this device has "
                f"{USABLE * here.gpu.memory_gb:.1f} GB usable: {row.remedy}"
            )
        elif row.host_gb > USABLE * here.host_gb:
            yield (
                f"{row.experiment}: a checkpoint is copied into the host's memory, so that training goes on while it "
                f"is written. With it the training needs {row.host_gb:.1f} GB there, {here.host_gb:.1f} GB are "
                f"available: {row.host_remedy}"
            )
    disks: dict[int, list[StageForecast]] = {}
    for row in rows:
        disks.setdefault(_existing(row.folder).stat().st_dev, []).append(row)
    for on_disk in disks.values():
        needed = sum(row.disk_gb for row in on_disk)
        free = shutil.disk_usage(_existing(on_disk[0].folder)).free / 1e9
        if needed > free:
            folders = ", ".join(dict.fromkeys(str(row.folder) for row in on_disk if row.disk_gb))
            yield (
                f"disk: {needed:.1f} GB will be written to {folders}, {free:.1f} GB are free: free disk space, set "
                f"other folders (paths.cache, paths.run), or lower train.keep_checkpoints or cache.size"
            )


def _existing(folder: Path) -> Path:
    """Returns the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def forecast_all(configs: Sequence[Config], ranks: int) -> tuple[str, list[str]]:
    """Returns the table of all experiments, and the errors of what does not fit. Work that they share counts once.

    `ranks`: on all hosts, which are taken to be like this machine. Without GPUs, all ranks are taken to be on it.
    """
    bf16 = configs[0].engine.precision == "bf16"
    gpus = torch.cuda.device_count() or ranks
    local = max(number for number in range(1, ranks + 1) if ranks % number == 0 and number <= gpus)
    here = device_here(local, torch.bfloat16 if bf16 else torch.float32)
    cluster = Cluster(here.gpu, ranks // local, local)
    rows: dict[Path, StageForecast] = {}
    for config in configs:
        for row in forecast(config, cluster, here):
            rows.setdefault(row.folder, row)
    found = list(rows.values())
    return (table(found, here, ranks), list(faults(found, here))) if found else ("", [])


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
