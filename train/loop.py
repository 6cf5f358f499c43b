"""The training run on one page: stream -> step -> engine -> monitor -> checkpoint -> exported student."""

import os
import sys
import time

import torch

from randcond.data.stream.stream import Positions, batches
from randcond.launch.config.batch import batch_shape
from randcond.launch.config.paths import student_folder
from randcond.launch.config.sections import Config
from randcond.launch.runtime.exit_codes import PREEMPTED
from randcond.launch.runtime.files import atomic_write, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.processes import RANKS_FROM
from randcond.model_zoo.export import export_student, student_unet, unet_weights
from randcond.train.build import flop_per_sample
from randcond.train.evaluation import evaluate_at, evaluate_missed, rehearse
from randcond.train.faults.heartbeat import Heartbeat
from randcond.train.faults.preemption import Preemption, ignore_in_worker
from randcond.train.prefetch import Prefetcher
from randcond.train.setup import Training, set_up, start
from randcond.train.state import checkpoint
from randcond.train.state.model_card import model_card
from randcond.train.watch.monitor import Monitor
from randcond.train.watch.sample_grid import draw_grid
from randcond.train.watch.sample_log import SampleLog
from randcond.train.watch.timing import StartupTimer, trace_window


def run(config: Config) -> None:
    """Trains the experiment's student, from its newest checkpoint if there is one, and exports it."""
    startup = StartupTimer()
    startup.mark("Python and its libraries")
    training = set_up(config, startup.mark)
    if training is None:
        return
    engine = training.engine
    with Heartbeat(engine, config.engine.heartbeat, config.engine.timeout) as alive:
        if engine.rank == 0:
            rehearse(config)
        startup.mark("rehearsal of evaluations")
        first, seconds = start(training, startup.mark)
        preemption = Preemption(engine)
        last, seconds = steps(training, alive, preemption, startup, first, seconds)
        preempted = last < config.train.steps
        if not preempted:
            export(training, seconds)
        # Of a job's steps Slurm asks only the one that runs: its script has to know before it begins the next.
        late = not preempted and os.environ.get(RANKS_FROM) == "slurm" and preemption.wanted()
    engine.close()
    if preempted or late:
        if engine.rank == 0:
            there = "finished" if late else f"saved at step {last}; the same command goes on from there"
            log.info(f"training: asked to end, {there}")
        sys.exit(PREEMPTED)


def steps(
    training: Training, alive: Heartbeat, preemption: Preemption, startup: StartupTimer, first: int, seconds: float
) -> tuple[int, float]:
    """Trains on from step `first`; returns the last step done, asked to end or not, and the seconds trained in all."""
    config, engine, train = training.config, training.engine, training.config.train
    micro, accumulation = batch_shape(train.global_batch, engine.ranks, config.engine.micro_batch)
    positions = Positions(first, train.steps, train.global_batch, micro, engine.rank, engine.ranks)
    loader = batches(training.stream, positions, train.workers, ignore_in_worker)
    keep = (train.keep_checkpoints, train.keep_every)
    checkpoints = checkpoint.Writer(training.folder / "checkpoints", engine.rank, engine.ranks, *keep)
    flop = flop_per_sample(training.teacher, training.unet)
    monitor = Monitor(config, engine, training.teacher.timesteps, first, flop)
    ahead = Prefetcher(loader, training.teacher.device, monitor.waiting)
    seen = SampleLog(training.folder, engine.rank, train.log_samples)
    began, step, preempted = time.monotonic() - seconds, first, False
    began += evaluate_missed(training, monitor, alive, first)
    startup.mark("loader, monitor")
    with checkpoints, trace_window(train.profile, first, training.folder, engine.rank) as traced:
        while step < train.steps and not preempted:
            step += 1
            lr = train.lr * min(1.0, step / max(1, train.warmup))
            for _ in range(accumulation):
                alive.at(step, "waiting for data")
                batch = ahead.take()
                alive.at(step, "forward")
                losses = training.distil(engine.forward, batch, engine.dtype)
                alive.at(step, "waiting for data")
                ahead.fetch()
                alive.at(step, "backward")
                engine.backward(losses.total)
                alive.at(step, "optimizer")
                norm = engine.step(lr, min(train.ema_decay, (1 + step) / (10 + step)))
                monitor.add(losses, batch)
                seen.add(step, batch)
            alive.at(step, "between steps")
            if step == first + 1:
                startup.first_step(training.folder, engine.rank == 0)
            traced()
            checkpoints.check()
            preempted = preemption.wanted() and step < train.steps  # else only evaluation and export are left
            milestone = step % train.checkpoint_every == 0 or step == train.steps or preempted
            shown = any(every and step % every == 0 for every in (train.sample_every, train.eval_every))
            monitor.step(step, lr, norm, milestone or shown)  # stops the run on a value that is not finite
            if milestone:
                spent = time.monotonic() - began
                facts = {"identity": training.identity, "seconds": spent, "skipped": engine.skipped}
                checkpoints.save(step, engine.local_state(), engine.shapes, facts)
            if train.sample_every and step % train.sample_every == 0 and not preempted:
                picture = draw_grid(config, training.teacher, engine, training.unet)
                monitor.picture("teacher over student", picture, step)
            if not preempted:
                began += evaluate_at(training, monitor, alive, step)  # no part of the training's time
    monitor.close()
    seen.close()
    return step, time.monotonic() - began


def export(training: Training, seconds: float) -> None:
    """Writes student/ (raw weights) and student_ema/ as diffusers folders, then train.json: the run is finished."""
    config, engine = training.config, training.engine
    for kind in ("raw", "ema"):
        gathered = engine.gather("weights" if kind == "raw" else kind)
        if engine.rank == 0:
            trained = student_unet(training.unet, unet_weights(gathered), torch.float32)
            with atomic_write(student_folder(config, kind)) as aside:
                export_student(aside, trained, training.teacher.folder, model_card(config, kind, config.train.steps))
    if engine.rank == 0:
        facts = {"steps": config.train.steps, "seconds": round(seconds, 1), "left_out": training.left_out}
        write_json(training.folder / "train.json", {**facts, "identity": training.identity})
        ema, raw = (student_folder(config, kind) for kind in ("ema", "raw"))
        log.info(f"training: finished, the student is at {ema} (raw weights: {raw})")
    engine.barrier()
