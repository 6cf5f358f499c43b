"""The training run on one page: stream -> step -> engine -> monitor -> checkpoint -> exported student."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from randcond.data.cache import LatentCache
from randcond.data.conditioning import probability_table
from randcond.data.files import check_same, read_json, remove, write_json, write_text, written_whole
from randcond.data.lock import hold
from randcond.data.pool import open_pool
from randcond.data.ranks import device
from randcond.data.stream import CaptionPool, Positions, Stream, batches
from randcond.launch.batch import batch_shape
from randcond.launch.config import Config, resolve_path, student_folder, to_dict, to_yaml
from randcond.launch.stage import PREEMPTED
from randcond.model_zoo.export import check_shapes, export_student, student_unet, unet_weights
from randcond.model_zoo.teacher import Teacher
from randcond.train import checkpoint
from randcond.train.build import build_step, flop_per_sample, settle
from randcond.train.card import model_card
from randcond.train.disk import check_folder
from randcond.train.engine import Engine, build_engine, shard_teacher
from randcond.train.heartbeat import Heartbeat
from randcond.train.monitor import Monitor
from randcond.train.preemption import Preemption, ignore_in_worker
from randcond.train.profiling import trace_window
from randcond.train.samples import draw_grid
from randcond.train.step_lines import SampleLog, forget_samples_after


def run(config: Config) -> None:
    """Trains the experiment's student, from its newest checkpoint if there is one, and exports it."""
    folder, train = Path(config.paths.run), config.train
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    cache = LatentCache(config, teacher.fingerprint)
    pool = CaptionPool(cache.captions, open_pool(Path(config.paths.pool)))
    identity = what_decides(config, cache)
    if finished(config, identity):
        return
    probability = probability_table(config.conditioning.p, config.conditioning.p_args, teacher.timesteps)
    counted = train.global_batch if train.losses.task else 0
    stream = Stream(cache, pool, probability, config.conditioning.null, teacher.tokenizers, train.seed, counted)
    module, distil = build_step(config, teacher)
    engine = build_engine(config, module)
    unet, flop = module.unet, flop_per_sample(teacher.unet, module.unet)
    with Heartbeat(engine, config.engine.heartbeat, config.engine.timeout) as alive:
        if engine.rank == 0:
            hold(folder)
            parameters = sum(math.prod(shape) for shape in engine.shapes.values())
            check_folder(folder, parameters, train.keep_checkpoints)
        engine.barrier()
        settle(config, teacher, unet, engine, folder)
        if config.engine.teacher == "sharded":
            shard_teacher(teacher.unet)
        first, seconds = resume(engine, folder, identity, train.steps)
        if engine.rank == 0:
            make_ready(config, first)
        engine.barrier()
        preemption = Preemption(engine)
        keep = (train.keep_checkpoints, train.keep_every)
        checkpoints = checkpoint.Writer(folder / "checkpoints", engine.rank, engine.ranks, *keep)
        micro, accumulation = batch_shape(train.global_batch, engine.ranks, config.engine.micro_batch)
        positions = Positions(first, train.steps, train.global_batch, micro, engine.rank, engine.ranks)
        loader = batches(stream, positions, train.workers, ignore_in_worker)
        monitor = Monitor(config, engine, teacher.timesteps, first, flop)
        seen = SampleLog(folder, engine.rank, train.log_samples)
        began, preempted = time.monotonic(), False
        with trace_window(train.profile, first, folder, engine.rank) as traced:
            for step in range(first + 1, train.steps + 1):
                lr = train.lr * min(1.0, step / max(1, train.warmup))
                for _ in range(accumulation):
                    alive.at(step, "waiting for data")
                    with monitor.waiting():
                        batch = next(loader)
                    alive.at(step, "forward and backward")
                    losses = distil(engine.forward, batch, engine.dtype)
                    engine.backward(losses.total)
                    norm = engine.step(lr, min(train.ema_decay, (1 + step) / (10 + step)))
                    monitor.add(losses, batch)
                    seen.add(step, batch)
                alive.at(step, "between steps")
                traced()
                checkpoints.check()
                preempted = preemption.wanted() and step < train.steps
                milestone = step % train.checkpoint_every == 0 or step == train.steps or preempted
                monitor.step(step, lr, norm, milestone)  # stops the run on a value that is not finite
                if milestone:
                    spent = seconds + time.monotonic() - began
                    facts = {"identity": identity, "seconds": spent, "skipped": engine.skipped}
                    checkpoints.save(step, engine.local_state(), engine.shapes, facts)
                if preempted:
                    break
                if train.sample_every and step % train.sample_every == 0:
                    monitor.picture("teacher over student", draw_grid(config, teacher, engine, unet), step)
        checkpoints.wait()
        if not preempted:
            export(config, teacher, engine, unet, seconds + time.monotonic() - began, identity)
        monitor.close()
        seen.close()
    engine.close()
    if preempted:
        if engine.rank == 0:
            print(f"training: asked to end, saved at step {step}; the same command goes on from there", flush=True)
        sys.exit(PREEMPTED)


def make_ready(config: Config, first: int) -> None:
    """The run's folder as it was after `first` steps; by the first rank, before any step."""
    folder = Path(config.paths.run)
    checkpoint.clear_unfinished(folder / "checkpoints")
    remove(folder / "train.json")  # written again when the students are
    write_text(folder / "config.yaml", to_yaml(config))
    forget_samples_after(folder, first)


def what_decides(config: Config, cache: LatentCache) -> dict[str, Any]:
    """What a checkpoint's numbers depend on; a run resumes only where all of it is the same."""
    resolved = to_dict(config)
    free = {"steps", "workers", "log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "sample_every"}
    free |= {"skip_nonfinite", "log_samples", "profile"}
    return {
        "student": resolved["student"],
        "conditioning": resolved["conditioning"],
        "train": {key: value for key, value in resolved["train"].items() if key not in free},
        "teacher": cache.manifest["teacher"],
        "cache": [shard["sha256"] for shard in cache.manifest["shards"]],
        "precision": [config.engine.precision, config.teacher.dtype],
        "pool": read_json(Path(config.paths.pool) / "manifest.json")["sha256"],
    }


def resume(engine: Engine, folder: Path, identity: dict[str, Any], last: int) -> tuple[int, float]:
    """Loads the newest sound checkpoint into the engine; returns its step and the seconds trained so far.

    Raises ValueError when it is of another experiment or architecture, or beyond the `last` step asked for.
    """

    def agree(faults: int) -> int:
        return int(engine.all_sum(torch.tensor([float(faults)], device=engine.device)).item())

    found = checkpoint.newest_sound(folder / "checkpoints", engine.rank, engine.ranks, agree)
    step = found.manifest["step"] if found else 0
    if agree(step) != step * engine.ranks:
        raise ValueError(f"rank {engine.rank} finds step {step} in {folder / 'checkpoints'}, another rank another one")
    if found is None:
        return 0, 0.0
    check_same(found.manifest["identity"], identity, f"the run at {folder}", "Remove it, or give another paths.run.")
    check_shapes(engine.shapes, found.shapes, str(found.path))
    if step > last:
        raise ValueError(f"train.steps: {last} asked for, the run at {folder} is at step {step} already")
    engine.skipped = found.manifest["skipped"]
    engine.load(found.read, step - engine.skipped)
    if engine.rank == 0:
        print(f"training: going on from step {step}", flush=True)
    return step, found.manifest["seconds"]


def export(
    config: Config, teacher: Teacher, engine: Engine, unet: torch.nn.Module, seconds: float, identity: dict[str, Any]
) -> None:
    """Writes student/ (raw weights) and student_ema/ as diffusers folders, then train.json: the run is finished."""
    folder = Path(config.paths.run)
    for kind in ("raw", "ema"):
        weights = unet_weights(engine.gather("weights" if kind == "raw" else kind))
        if engine.rank == 0:
            trained = student_unet(unet, weights, torch.float32)
            with written_whole(student_folder(config, kind)) as aside:
                export_student(aside, trained, teacher.folder, model_card(config, kind))
    if engine.rank == 0:
        facts = {"steps": config.train.steps, "seconds": round(seconds, 1), "identity": identity}
        write_json(folder / "train.json", facts)
        ema, raw = (student_folder(config, kind) for kind in ("ema", "raw"))
        print(f"training: finished, the student is at {ema} (raw weights: {raw})", flush=True)
    engine.barrier()


def finished(config: Config, identity: dict[str, Any]) -> bool:
    """Whether the run's folder holds the finished students of just this training."""
    done = Path(config.paths.run) / "train.json"
    if not done.is_file() or not all(student_folder(config, kind).is_dir() for kind in ("raw", "ema")):
        return False
    facts = read_json(done)
    return facts["steps"] == config.train.steps and facts["identity"] == identity
