"""Sets up a training run: opens cache and pool, builds the networks, starts the engine, loads the checkpoint."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.captions.pool import check_pool_identity, check_sources_unchanged, open_pool
from randcond.data.stream.conditioning import times_of
from randcond.data.stream.stream import CaptionPool, Stream
from randcond.data.teacher_of import load_teacher
from randcond.launch.config.experiments import to_yaml
from randcond.launch.config.identity import differences
from randcond.launch.config.paths import eval_folder, exported_weights, student_folder, watched_folder
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_record, remove, write_text
from randcond.launch.runtime.locks import hold_lock
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import rank
from randcond.launch.urls import hide_secrets
from randcond.model_zoo.export import check_shapes
from randcond.model_zoo.kernels.fp8 import fp8_teacher
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step, choose_kernels
from randcond.train.engine import Engine, build_engine, shard_teacher
from randcond.train.engine.switches import decided
from randcond.train.faults.disk_space import check_folder
from randcond.train.losses import counts_unreplaced
from randcond.train.state import checkpoint
from randcond.train.state.identity import ABSENT, comparable, how_to_go_on, run_identity
from randcond.train.step import DistillationStep
from randcond.train.watch.sample_log import drop_samples_after


@dataclass(frozen=True)
class Training:
    """Everything that the steps of a run need."""

    config: Config
    teacher: Teacher
    student: ModelMixin  # its denoiser, a part of the module that the engine wraps
    distil: DistillationStep
    engine: Engine
    stream: Stream
    identity: dict[str, Any]  # the settings that checkpoints depend on
    left_out: list[str]  # one line per damaged shard, image or caption file that is not used (on_error: skip)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.paths.run)


def set_up(config: Config, mark: Callable[[str], None] = lambda part: None) -> Training | None:
    """Opens and builds everything. Returns None if the run folder already holds the finished students of this run.

    `mark` is called with the name of each finished part, to measure the startup time.
    Raises UserError if cache, pool or teacher do not match the experiment.
    """
    train = config.train
    teacher = load_teacher(config)
    options, switches = decided(config.engine, teacher)
    config = replace(config, engine=options)
    mark("teacher")
    cache = LatentCache.open(config, teacher.fingerprint)
    teacher.latent_side = cache.latent_shape[-1]
    extra = open_pool(Path(config.paths.pool), check=rank() == 0)
    check_pool_identity(config)
    if rank() == 0:
        _warn_of_changed_sources(config)
    pool = CaptionPool(cache.captions, extra)
    skipped = left_out(config, cache)
    if len(cache) < train.global_batch:
        raise UserError(
            f"train.global_batch: {train.global_batch} is larger than the cache at {config.paths.cache}, which holds "
            f"{len(cache)} samples; a batch must not contain a sample twice; lower it or draw a larger cache"
        )
    identity = run_identity(config, cache)
    if is_finished(config, identity):
        return None
    times = times_of(config, teacher.process)
    count_batch = train.global_batch if counts_unreplaced(vars(train.losses)) else 0
    stream = Stream(cache, pool, times, config.conditioning.null, teacher.tokenizers, train.seed, count_batch)
    mark("cache and pool")
    module, distil = build_step(config, teacher)
    mark("student")
    engine = build_engine(config, module)
    # A host that sees other files would read the samples in another order.
    expected = engine.broadcast(identity)
    data = f"the training data of rank {engine.rank}"
    check_matches(identity, expected, data, "All ranks need the same cache and pool.")
    mark("engine")
    fp8_message = fp8_teacher(teacher) if config.engine.teacher_fp8 else ""
    if engine.rank == 0:
        for message in filter(None, (teacher.remark, fp8_message)):
            log.info(message)
        if switches:
            log.info(f"training: {switches}")
        if config.conditioning.p != "none":
            p, share = config.conditioning, times.expected_share()
            log.info(f"training: p(t) {p.p} of {p.of} replaces {share:.1%} of the captions on average")
        for line in skipped:
            log.info(f"training: left out: {line}")
        if train.sample_every > train.steps:
            every = f"train.sample_every ({train.sample_every:,})"
            log.info(f"training: no sample grid, because {every} is more than its {train.steps:,} steps")
    return Training(config, teacher, module.network, distil, engine, stream, identity, skipped)


def _evaluations_left(config: Config, part: str) -> int:
    """Returns the number of evaluations whose denoiser is not saved yet. `part`: its folder."""
    train = config.train
    steps = range(train.eval_every, train.steps + 1, train.eval_every) if train.eval_every else ()
    folders = (watched_folder(config, step, kind) / part for step in steps for kind in train.eval_weights)
    return sum(not folder.is_dir() for folder in folders)


def start(training: Training, mark: Callable[[str], None] = lambda part: None) -> tuple[int, float]:
    """Locks the run folder, loads the newest checkpoint and chooses the kernels. Every rank must call it.

    `mark` is called with the name of each finished part. Returns the step to resume from (0: a new run) and the
    training time so far in seconds.
    """
    config, engine, folder = training.config, training.engine, training.folder
    if engine.rank == 0:
        hold_lock(folder)
        checkpoint.clear_unfinished(folder / "checkpoints")
        train, parameters = config.train, sum(math.prod(shape) for shape in engine.shapes.values())
        kept = train.keep_checkpoints + train.kept_for_good
        check_folder(
            folder,
            parameters,
            kept,
            _evaluations_left(config, training.teacher.family.part),
            config.engine.ema != "off",
        )
    engine.barrier()
    # Before anything is written: it raises if the folder belongs to a run with other settings, whose files must stay.
    first, seconds = resume(engine, folder, training.identity, config.train.steps, how_to_go_on(config))
    mark("checkpoint")
    choose_kernels(config, training.teacher, training.student, engine, folder)
    if config.engine.teacher == "sharded":
        shard_teacher(training.teacher.denoiser)
    if engine.rank == 0:
        prepare_folder(config, first)
    engine.barrier()
    mark("kernels")
    return first, seconds


def _warn_of_changed_sources(config: Config) -> None:
    """Says that the pool is of older caption files. A training alone uses the pool as it is."""
    try:
        check_sources_unchanged(config)
    except UserError as error:
        log.warning(f"training on the pool as it is: {error}")


def prepare_folder(config: Config, first: int) -> None:
    """Restores the run folder to its state after step `first`. Rank 0 calls it before the first step."""
    folder = Path(config.paths.run)
    checkpoint.rename_damaged_after(folder / "checkpoints", first)
    for kind in ("raw", "ema"):
        _set_evaluation_aside(eval_folder(config, kind))
    remove(folder / "train.json")  # export() writes it again
    # An earlier run in this folder may have written best.json with other settings, before its first checkpoint.
    if first == 0:
        remove(folder / "best.json")
    write_text(folder / "config.yaml", to_yaml(config))
    drop_samples_after(folder, first)


def _set_evaluation_aside(folder: Path) -> None:
    """Renames the evaluation of a student that will be exported anew, to NAME-before-N. The run's report goes there."""
    if folder.is_dir():
        number = sum(1 for _ in folder.parent.glob(f"{folder.name}-before-*"))
        kept = folder.with_name(f"{folder.name}-before-{number}")
        folder.rename(kept)
        for path in [*folder.parent.glob("report.*"), *folder.parent.glob("*.png")]:
            path.rename(kept / path.name)
        log.info(
            f"training: the student will be exported anew; evaluation and report of the earlier one are kept in {kept}"
        )


def left_out(config: Config, cache: LatentCache) -> list[str]:
    """Returns one line for each damaged shard, image or caption file that is not used."""
    lines = [*cache.left_out, *cache.manifest.get("damaged", [])]
    if cache.missing:
        lines.append(f"{cache.missing} damaged images of {cache.manifest['captions']}; the shard indexes list them")
    lines += read_record(Path(config.paths.pool) / "manifest.json", "damaged")["damaged"].values()
    return list(map(hide_secrets, lines))  # an older pool that can't be written holds whole URLs


def resume(engine: Engine, folder: Path, identity: dict[str, Any], last: int, remedy: str = "") -> tuple[int, float]:
    """Loads the newest valid checkpoint into the engine. Returns its step and the training time so far in seconds.

    Raises UserError if it has other settings or another architecture, if it lacks EMA weights, or if its step is after
    `last`. Raises UserError if the run is finished but has no checkpoint, because its students would be replaced by
    those of a new training.
    """
    found = checkpoint.newest_valid(folder / "checkpoints", engine.rank, engine.ranks, engine.broadcast, engine.collect)
    if found is None and (folder / "train.json").is_file():
        raise UserError(
            f"the run at {folder} is finished, and none of its checkpoints is left to go on from. Give another "
            f"paths.run; with student.init={folder}/student_ema it starts from the student of this run. Or remove "
            f"{folder} to train it anew"
        )
    if found is None:
        return 0, 0.0
    step = found.manifest["step"]
    stored, wanted = comparable(found.manifest["identity"], identity)
    check_matches(stored, wanted, f"the run at {folder}", remedy, ABSENT)
    check_shapes(engine.shapes, found.shapes, str(found.path))
    if step > last:
        raise UserError(
            f"train.steps: {last} is too small, because the run at {folder} has finished step {step} already; "
            f"raise it, or set another paths.run"
        )
    if "ema" in engine.kinds and "ema" not in found.kinds:
        raise UserError(
            f"engine.ema: {found.path} has no EMA weights, because the run was trained with engine.ema=off; "
            f"go on with engine.ema=off, or set another paths.run to train anew"
        )
    engine.skipped = found.manifest["skipped"]
    engine.load(found.read, step - engine.skipped)
    if engine.rank == 0:
        log.info(f"training: resuming from step {step}")
    return step, found.manifest["seconds"]


def is_finished(config: Config, identity: dict[str, Any]) -> bool:
    """Returns True if the run folder holds the finished students of a run with these steps and this identity."""
    path = Path(config.paths.run) / "train.json"
    if not path.is_file() or not all(student_folder(config, kind).is_dir() for kind in exported_weights(config)):
        return False
    facts = read_record(path, "steps", "identity")
    return facts["steps"] == config.train.steps and not differences(facts["identity"], identity, ABSENT)
