"""The training loop: stream -> step -> engine -> monitor -> checkpoint -> exported student."""

import os
import sys
import time

import torch

from randcond.data.stream.stream import Positions, batches
from randcond.launch.config.engines import batch_shape
from randcond.launch.config.paths import exported_weights, student_folder
from randcond.launch.config.sections import Config
from randcond.launch.device.batches import with_eval_batch, with_micro_batch
from randcond.launch.device.out_of_memory import naming_memory, smaller_batch
from randcond.launch.runtime.exit_codes import PREEMPTED
from randcond.launch.runtime.files import atomic_write, remove, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.processes import RANKS_FROM
from randcond.launch.runtime.ranks import device_name, rank
from randcond.model_zoo.export import denoiser_weights, export_student, trained_student
from randcond.train.build import flop_per_sample
from randcond.train.evaluation import evaluate_if_due, evaluate_interrupted, preload_evaluation_inputs
from randcond.train.faults.heartbeat import Heartbeat
from randcond.train.faults.preemption import Preemption, ignore_signals
from randcond.train.prefetch import Prefetcher
from randcond.train.schedule import learning_rate
from randcond.train.setup import Training, set_up, start
from randcond.train.sinks.sink import GRID
from randcond.train.state import checkpoint
from randcond.train.state.model_card import model_card
from randcond.train.watch.monitor import Monitor
from randcond.train.watch.sample_grid import draw_grid, grid_path
from randcond.train.watch.sample_log import SampleLog
from randcond.train.watch.timing import StartupTimer, trace_window

# What makes it fit where memory runs out before the first step.
STATE = "the networks and the training's state do not fit; set engine.ema=cpu, engine.kind=fsdp or teacher.dtype=int8"


def run(config: Config) -> None:
    """Trains and exports the student of the experiment, and resumes from the newest checkpoint if there is one.

    Raises SystemExit with PREEMPTED if a preemption request ended the run.
    """
    startup = StartupTimer()
    startup.mark("Python and its libraries")
    config = with_micro_batch(config)
    if config.train.eval_every:
        config = with_eval_batch(config, training=True)
    with naming_memory(STATE):
        training = set_up(config, startup.mark)
    if training is None:
        if rank() == 0:
            log.info(f"training: all {config.train.steps} steps are done; the student is at {_where(config)}")
        return
    engine = training.engine
    with Heartbeat(engine, config.engine.heartbeat, config.engine.timeout) as heartbeat:
        if engine.rank == 0:
            preload_evaluation_inputs(config)
        startup.mark("rehearsal of evaluations")
        with naming_memory(STATE):
            first, seconds = start(training, startup.mark)
        preemption = Preemption(engine)
        last, seconds = steps(training, heartbeat, preemption, startup, first, seconds)
        preempted = last < config.train.steps
        if not preempted:
            export(training, seconds)
        # Slurm signals only the job step that is running. The job's script needs the exit code PREEMPTED even though
        # this training has finished, so that it does not start its next step.
        late = not preempted and os.environ.get(RANKS_FROM) == "slurm" and preemption.requested()
    engine.close()
    if preempted or late:
        if engine.rank == 0:
            outcome = "finished" if late else f"saved at step {last}; run the same command to resume"
            log.info(f"training: preempted, {outcome}")
        sys.exit(PREEMPTED)


def steps(
    training: Training, heartbeat: Heartbeat, preemption: Preemption, startup: StartupTimer, first: int, seconds: float
) -> tuple[int, float]:
    """Trains after step `first` until the last step or a preemption.

    `seconds`: the training time until `first`. Returns the last finished step and the total training time in seconds.
    """
    config, engine, train = training.config, training.engine, training.config.train
    micro, accumulation = batch_shape(train.global_batch, engine.ranks, config.engine.micro_batch)
    positions = Positions(first, train.steps, train.global_batch, micro, engine.rank, engine.ranks)
    loader = batches(training.stream, positions, train.workers, ignore_signals)
    keep = (train.keep_checkpoints, train.keep_every)
    checkpoints = checkpoint.Writer(training.folder / "checkpoints", engine.rank, engine.ranks, *keep)
    flop = flop_per_sample(training.teacher, training.student)
    monitor = Monitor(config, engine, training.teacher.timesteps, first, flop)
    encode = training.distil.encode if config.engine.text_ahead else None
    prefetcher = Prefetcher(loader, training.teacher.device, monitor.data_stalls.wait, encode)
    sample_log = SampleLog(training.folder, engine.rank, train.log_samples)
    started, step, preempted = time.monotonic() - seconds, first, False
    # The run may have been killed between its last checkpoint and the sample grid or the evaluation of that step.
    if not engine.broadcast(grid_path(training.folder, first).is_file()):
        draw_grid_if_due(training, monitor, first)
    # `started` is moved by the duration of each evaluation, which does not count as training time.
    started += evaluate_interrupted(training, monitor, heartbeat, first)
    startup.mark("loader, monitor")
    tracing = trace_window(train.profile, first, training.folder, engine.rank)
    checkpointing = "" if config.engine.activation_checkpointing else "engine.activation_checkpointing=true"
    fitting = naming_memory(smaller_batch("engine.micro_batch", micro, micro * accumulation, others=checkpointing))
    with monitor, checkpoints, fitting, tracing as after_step:
        while step < train.steps and not preempted:
            step += 1
            lr = learning_rate(train, step)
            for _ in range(accumulation):
                heartbeat.report(step, "waiting for data")
                batch = prefetcher.take()
                heartbeat.report(step, "forward")
                losses = training.distil(engine.forward, batch, engine.dtype)
                heartbeat.report(step, "waiting for data")
                prefetcher.fetch()
                heartbeat.report(step, "backward")
                engine.backward(losses.total)
                heartbeat.report(step, "optimizer")
                norm = engine.step(lr, min(train.ema_decay, (1 + step) / (10 + step)))
                monitor.add(losses, batch)
                sample_log.add(step, batch)
            heartbeat.report(step, "between steps")
            if step == first + 1:
                startup.finish(training.folder, engine.rank == 0)
            after_step()
            checkpoints.check()
            # A request in the last step is ignored: only the evaluation and the export remain.
            preempted = preemption.requested() and step < train.steps
            milestone = step % train.checkpoint_every == 0 or step == train.steps or preempted
            shown = any(every and step % every == 0 for every in (train.sample_every, train.eval_every))
            monitor.step(step, lr, norm, milestone or shown)  # raises if a value is NaN or infinite
            if milestone:
                trained_s = time.monotonic() - started
                facts = {"identity": training.identity, "seconds": trained_s, "skipped": engine.skipped}
                checkpoints.save(step, engine.local_state(), engine.shapes, facts)
            if not preempted:
                draw_grid_if_due(training, monitor, step)
                started += evaluate_if_due(training, monitor, heartbeat, step)
    monitor.close(finished=step == train.steps)
    sample_log.close()
    return step, time.monotonic() - started


def draw_grid_if_due(training: Training, monitor: Monitor, step: int) -> None:
    """Draws the sample grid of a step if `train.sample_every` asks for one. Every rank must call it."""
    every, path = training.config.train.sample_every, grid_path(training.folder, step)
    if every and step and step % every == 0:
        draw_grid(training.config, training.teacher, training.engine, training.student, path)
        monitor.add_picture(step, GRID, path)


def export(training: Training, seconds: float) -> None:
    """Writes student/ (raw weights) and student_ema/ as diffusers folders, then train.json, which marks the run done.

    Without EMA weights, it removes a student_ema/ that the run left at an earlier step.
    `seconds`: the total training time. Every rank must call it.
    """
    config, engine = training.config, training.engine
    students = {kind: student_folder(config, kind) for kind in exported_weights(config)}
    for kind, folder in students.items():
        gathered = engine.gather("weights" if kind == "raw" else kind)
        if engine.rank == 0:
            trained = trained_student(training.student, denoiser_weights(gathered), torch.float32)
            card = model_card(config, kind, config.train.steps, training.teacher.folder)
            with atomic_write(folder) as temporary:
                export_student(temporary, trained, training.teacher.folder, card)
    if engine.rank == 0:
        if "ema" not in students:
            remove(student_folder(config, "ema"))
        facts = {"steps": config.train.steps, "seconds": round(seconds, 1), "left_out": training.left_out}
        machine = {"device": device_name(), "ranks": engine.ranks, "versions": {"torch": torch.__version__}}
        write_json(training.folder / "train.json", {**facts, "machine": machine, "identity": training.identity})
        log.info(f"training: finished; the student is at {_where(config)}")
    engine.barrier()


def _where(config: Config) -> str:
    """Returns the folders of the exported students, in words."""
    names, kinds = {"ema": "EMA", "raw": "raw"}, exported_weights(config)
    return " and ".join(f"{student_folder(config, kind)} ({names[kind]} weights)" for kind in names if kind in kinds)
