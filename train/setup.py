"""A training, ready for its first step: cache and pool opened, networks built, engine started, checkpoint loaded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.captions.pool import check_asked, open_pool
from randcond.data.stream.conditioning import probability_table
from randcond.data.stream.stream import CaptionPool, Stream
from randcond.launch.config.experiments import to_yaml
from randcond.launch.config.paths import resolve_path, student_folder, watched_folder
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_json, remove, write_text
from randcond.launch.runtime.locks import hold_lock
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import device, rank
from randcond.model_zoo.export import check_shapes
from randcond.model_zoo.kernels.fp8 import fp8_teacher
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step, choose_kernels
from randcond.train.engine import Engine, build_engine, shard_teacher
from randcond.train.faults.disk_space import check_folder
from randcond.train.state import checkpoint
from randcond.train.state.identity import run_identity
from randcond.train.step import DistillationStep
from randcond.train.watch.sample_log import forget_samples_after


@dataclass(frozen=True)
class Training:
    """What every step of a run needs, and what its checkpoints depend on."""

    config: Config
    teacher: Teacher
    unet: UNet2DConditionModel  # the student, inside the engine's module
    distil: DistillationStep
    engine: Engine
    stream: Stream
    identity: dict[str, Any]
    left_out: list[str]  # of what was to be trained on: damaged shards, images, caption files (on_error: skip)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.paths.run)


def set_up(config: Config, mark: Callable[[str], None] = lambda part: None) -> Training | None:
    """Opens and builds everything; None when the run's folder holds the finished students of just this training.

    `mark` is told each part that is done.

    Raises UserError when cache, pool or teacher are not what the experiment asks for.
    """
    train = config.train
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    mark("teacher")
    cache = LatentCache.open(config, teacher.fingerprint)
    teacher.latent_side = cache.latent_shape[-1]
    extra = open_pool(Path(config.paths.pool), check=rank() == 0)
    check_asked(config)
    pool = CaptionPool(cache.captions, extra)
    missing = left_out(config, cache)
    if len(cache) < train.global_batch:
        raise UserError(
            f"train.global_batch: {train.global_batch} samples, the cache at {config.paths.cache} holds {len(cache)}; "
            f"a batch would show some of them twice"
        )
    identity = run_identity(config, cache)
    if finished(config, identity):
        return None
    probability = probability_table(config.conditioning.p, config.conditioning.p_args, teacher.timesteps)
    counted = train.global_batch if train.losses.task else 0
    stream = Stream(cache, pool, probability, config.conditioning.null, teacher.tokenizers, train.seed, counted)
    mark("cache and pool")
    module, distil = build_step(config, teacher)
    mark("student")
    engine = build_engine(config, module)
    first = engine.broadcast(identity)  # a host that sees other files would go through them in another order
    check_matches(identity, first, f"rank {engine.rank}: what it trains on", "All ranks need the same cache and pool.")
    mark("engine")
    in_fp8 = fp8_teacher(teacher) if config.engine.teacher_fp8 else ""
    if engine.rank == 0:
        if in_fp8:
            log.info(in_fp8)
        for each in missing:
            log.info(f"training: left out: {each}")
    return Training(config, teacher, module.unet, distil, engine, stream, identity, missing)


def _evaluations_left(config: Config) -> int:
    train = config.train
    steps = range(train.eval_every, train.steps + 1, train.eval_every) if train.eval_every else ()
    kept = (watched_folder(config, step, kind) / "unet" for step in steps for kind in train.eval_weights)
    return sum(not folder.is_dir() for folder in kept)


def start(training: Training, mark: Callable[[str], None] = lambda part: None) -> tuple[int, float]:
    """Takes the folder, loads the newest checkpoint and settles the networks' kernels; (its step, seconds trained)."""
    config, engine, folder = training.config, training.engine, training.folder
    if engine.rank == 0:
        hold_lock(folder)
        checkpoint.clear_unfinished(folder / "checkpoints")
        train, parameters = config.train, sum(math.prod(shape) for shape in engine.shapes.values())
        check_folder(folder, parameters, train.keep_checkpoints + train.kept_for_good, _evaluations_left(config))
    engine.barrier()
    # First, since it refuses the folder of a run that was made otherwise: what that one keeps is to stay.
    first, seconds = resume(engine, folder, training.identity, config.train.steps)
    mark("checkpoint")
    choose_kernels(config, training.teacher, training.unet, engine, folder)
    if config.engine.teacher == "sharded":
        shard_teacher(training.teacher.unet)
    if engine.rank == 0:
        prepare_folder(config, first)
    engine.barrier()
    mark("kernels")
    return first, seconds


def prepare_folder(config: Config, first: int) -> None:
    """The run's folder as it was after `first` steps; by the first rank, before any step."""
    folder = Path(config.paths.run)
    checkpoint.set_aside_after(folder / "checkpoints", first)
    remove(folder / "train.json")  # written again when the students are
    if first == 0:  # what an earlier run here found best, killed before its first checkpoint, may be of other settings
        remove(folder / "best.json")
    write_text(folder / "config.yaml", to_yaml(config))
    forget_samples_after(folder, first)


def left_out(config: Config, cache: LatentCache) -> list[str]:
    """A line for each thing that is damaged and left out."""
    lines = [*cache.left_out, *cache.manifest["damaged"]]
    if cache.missing:
        lines.append(
            f"{cache.missing} damaged images of {cache.manifest['captions']}, "
            f"named in the indexes of the cache's shards"
        )
    return lines + list(read_json(Path(config.paths.pool) / "manifest.json")["damaged"].values())


def resume(engine: Engine, folder: Path, identity: dict[str, Any], last: int) -> tuple[int, float]:
    """Loads the newest sound checkpoint into the engine; returns its step and the seconds trained so far.

    Raises UserError when it is of another experiment or architecture, or beyond the `last` step asked for.
    """
    where = folder / "checkpoints"
    found = checkpoint.newest_valid(where, engine.rank, engine.ranks, engine.broadcast, engine.collect)
    if found is None:
        return 0, 0.0
    step = found.manifest["step"]
    check_matches(found.manifest["identity"], identity, f"the run at {folder}", "Remove it, or give another paths.run.")
    check_shapes(engine.shapes, found.shapes, str(found.path))
    if step > last:
        raise UserError(f"train.steps: {last} asked for, the run at {folder} is at step {step} already")
    engine.skipped = found.manifest["skipped"]
    engine.load(found.read, step - engine.skipped)
    if engine.rank == 0:
        log.info(f"training: going on from step {step}")
    return step, found.manifest["seconds"]


def finished(config: Config, identity: dict[str, Any]) -> bool:
    """Whether the run's folder holds the finished students of just this training."""
    done = Path(config.paths.run) / "train.json"
    if not done.is_file() or not all(student_folder(config, kind).is_dir() for kind in ("raw", "ema")):
        return False
    facts = read_json(done)
    return facts["steps"] == config.train.steps and facts["identity"] == identity
