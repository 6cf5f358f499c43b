"""Batches that an experiment leaves open (null): the largest that fits, chosen once and kept in the artefact's folder.

A resumed run, and a command that joins a cache or an evaluation, keep the recorded batch. So a cache's bits and a run's
accumulation don't change with the device that continues it.
"""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from randcond.launch.config.engines import batch_shape
from randcond.launch.config.paths import eval_folder
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_record, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import local_ranks, rank, world_size

if TYPE_CHECKING:
    from randcond.launch.planning.costs import Cluster

DEFAULT = 32  # samples at once, where the costs of a model's networks are unknown
_PATIENCE = 60.0  # seconds until another rank has recorded a batch


def with_cache_batch(config: Config) -> Config:
    """Returns the configuration with `cache.batch`: the recorded one, or the largest that fits this device.

    Raises UserError if not even one sample fits.
    """
    if config.cache.batch is not None:
        return config
    batch = recorded_cache_batch(config) or _record(_cache_record(config), _drawing(config, "cache"))
    if rank() == 0:
        log.info(f"cache: {batch} samples at once (cache.batch)")
    return replace(config, cache=replace(config.cache, batch=batch))


def with_eval_batch(config: Config, training: bool = False) -> Config:
    """Returns the configuration with `eval.batch`: the recorded one, or the largest that fits this device.

    The teacher's evaluation is shared by experiments, so all of them use its batch. `training`: whether the evaluations
    are those of a training (`train.eval_every`), whose state is on the device too.
    Raises UserError if not even one sample fits.
    """
    if config.eval.batch is not None:
        return config
    batch = recorded_eval_batch(config) or _record(_eval_record(config), _drawing(config, "eval", training))
    return replace(config, eval=replace(config.eval, batch=batch))


def with_micro_batch(config: Config) -> Config:
    """Returns the configuration with `engine.micro_batch`: the recorded one, or the largest that fits this device.

    The record is kept per global batch and number of ranks. Raises UserError if not even one sample fits.
    """
    if config.engine.micro_batch is not None:
        return config
    ranks = world_size()
    batch_shape(config.train.global_batch, ranks, None)  # raises UserError
    micro = recorded_micro_batch(config, ranks) or _record(_micro_record(config, ranks), _training(config))
    batch_shape(config.train.global_batch, ranks, micro)
    return replace(config, engine=replace(config.engine, micro_batch=micro))


def recorded_cache_batch(config: Config) -> int | None:
    """Returns the batch that the cache in its folder is drawn with, None if none is recorded.

    Raises UserError if the experiment's shards can't hold whole batches of this size.
    """
    batch = _first([Path(config.paths.cache) / "plan.json", _cache_record(config)])
    if batch and config.cache.shard_size % batch:
        raise UserError(
            f"cache.shard_size: is {config.cache.shard_size}, but the cache at {config.paths.cache} is made in batches "
            f"of {batch}: use a multiple of {batch}, or another paths.cache"
        )
    return batch


def recorded_eval_batch(config: Config) -> int | None:
    """Returns the batch of the evaluations in their folders, None if none is recorded."""
    plans = [folder / "plan.json" for folder in (eval_folder(config), Path(config.paths.reference))]
    return _first([*plans, _eval_record(config)])


def recorded_micro_batch(config: Config, ranks: int) -> int | None:
    """Returns the micro-batch that the run in its folder was started with on so many ranks, None if there is none.

    An older version recorded none: it took all samples of a rank at once. With an fp8 teacher, a run depends on it.
    """
    run = Path(config.paths.run)
    if config.engine.teacher_fp8 and any(run.glob("checkpoints/step-*")) and not any(run.glob("micro_batch-*.json")):
        return batch_shape(config.train.global_batch, ranks, None)[0]
    return _first([_micro_record(config, ranks)])


def _cache_record(config: Config) -> Path:
    return Path(config.paths.cache) / "batch.json"


def _eval_record(config: Config) -> Path:
    return Path(config.paths.reference) / "batch.json"


def _micro_record(config: Config, ranks: int) -> Path:
    return Path(config.paths.run) / f"micro_batch-{config.train.global_batch}-on-{ranks}.json"


def _first(records: list[Path]) -> int | None:
    """Returns the batch of the first file that holds one. Raises UserError if it is not a number of samples."""
    for path in filter(Path.is_file, records):
        batch = read_record(path).get("batch")
        if batch is not None and (not isinstance(batch, int) or batch < 1):
            raise UserError(f"{path}: batch is {batch!r}, expected a number of samples; restore it from a copy")
        if batch is not None:
            return batch
    return None


def _record(path: Path, batch: int) -> int:
    """Records a batch, unless another process was first. Returns the recorded one.

    All ranks and all commands that work on the folder agree on it without a message between them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    write_json(temporary, {"batch": batch})
    try:
        os.link(temporary, path)  # fails if another process was first
    except FileExistsError:
        pass
    except OSError:  # a file system without links: one rank writes, because the last of several would win
        if rank() == 0 and not path.exists():
            os.replace(temporary, path)
    temporary.unlink(missing_ok=True)
    deadline = time.monotonic() + _PATIENCE
    while (recorded := _first([path])) is None:
        if time.monotonic() > deadline:
            raise UserError(f"{path}: rank 0 has not recorded a batch there; do all ranks see the same folder?")
        time.sleep(0.1)
    return recorded


def _drawing(config: Config, stage: Literal["cache", "eval"], training: bool = False) -> int:
    from randcond.launch.device import drawing, remedies
    from randcond.launch.planning import costs
    from randcond.model_zoo.networks import OtherNetworks

    cluster = _cluster()
    try:
        sizes = costs.counted(config, "eval" if stage == "eval" else "train")
    except OtherNetworks:  # a published model, which is only evaluated
        return DEFAULT
    if stage == "cache":
        beside, batch = 0, drawing.largest_batch(config, sizes, cluster, stage)
    else:
        beside = drawing.held_by_training(config, costs.counted(config), cluster) if training else 0
        batch = drawing.largest_eval_batch(config, sizes, cluster, beside)
    if batch is None:
        remedy = remedies.drawing_remedy(config, sizes, cluster, stage, beside)
        raise UserError(_does_not_fit(stage, cluster, remedy))
    return batch


def _cluster() -> "Cluster":
    """Returns the ranks of this command, on hosts like this one."""
    from randcond.launch.device.here import device_here
    from randcond.launch.planning.costs import Cluster

    local = local_ranks()
    return Cluster(device_here(local).gpu, max(1, world_size() // local), local)


def _training(config: Config) -> int:
    from randcond.launch.device import remedies
    from randcond.launch.planning import costs, fitting

    cluster = _cluster()
    sizes = costs.counted(config)
    micro = fitting.largest_micro_batch(config, sizes, cluster)
    if micro is None:
        one = fitting.changed(config, {"engine.micro_batch": 1})
        raise UserError(_does_not_fit("train", cluster, remedies.training_remedy(one, sizes, cluster)))
    return micro


def _does_not_fit(stage: str, cluster: "Cluster", remedy: str) -> str:
    return f"{stage}: not even one sample fits the {cluster.gpu.memory_gb:.1f} GB of this device: {remedy}"
