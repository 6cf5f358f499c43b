"""Evaluation during training: raw and EMA weights on all ranks, every `train.eval_every` steps, best so far kept.

In: a training at some step. Out: RUN/evaluations/step-NNNNNN/{raw,ema}/ (the U-Net that drew, chunks, scores), values
for TensorBoard and metrics.jsonl, RUN/best.json and RUN/best/ (students in diffusers format). Nothing is deleted.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from randcond.eval.checks import check_evaluation
from randcond.eval.evaluate import (
    EvaluatedModel,
    References,
    evaluate,
    prepare,
    protocol_facts,
    references,
    with_pipeline_defaults,
)
from randcond.eval.images.generate import Task
from randcond.eval.images.prompts import ALL, first_prompts
from randcond.eval.scores.metrics import METRICS
from randcond.eval.scores.network_weights import fingerprint
from randcond.launch.config.paths import watched_folder
from randcond.launch.config.sections import Config
from randcond.launch.runtime.artefacts import write_config
from randcond.launch.runtime.files import atomic_write, read_json, remove, write_json
from randcond.launch.runtime.json_lines import whole_lines
from randcond.model_zoo.diffusers_folder import DTYPES
from randcond.model_zoo.export import export_student, load_unet, student_unet, unet_weights
from randcond.train.faults.heartbeat import Heartbeat
from randcond.train.setup import Training
from randcond.train.state.model_card import model_card
from randcond.train.watch.monitor import Monitor


def rehearse(config: Config) -> None:
    """Loads what evaluations will need and lets go of it: what is missing is said now, not after days.

    Raises UserError naming captions, metrics, weights or statistics that are wrong.
    """
    if config.train.eval_every:
        check_evaluation(config)
        references(config, prepare(config))


def evaluate_at(training: Training, monitor: Monitor, alive: Heartbeat, step: int) -> float:
    """Evaluates where `train.eval_every` says so; the seconds it took. Every rank must call it."""
    every, began = training.config.train.eval_every, time.monotonic()
    if not (every and step and step % every == 0):
        return 0.0
    values = evaluate_now(training, step, lambda: alive.at(step, "evaluating"))
    spent = time.monotonic() - began
    monitor.scores(step, values, spent)
    return spent


def evaluate_missed(training: Training, monitor: Monitor, alive: Heartbeat, first: int) -> float:
    """The evaluation of the step that a run goes on from, where it was cut off: its values were not logged."""
    logged = False
    if training.engine.rank == 0:  # which has cut off what a kill left half written
        path = training.folder / "metrics.jsonl"
        lines = whole_lines(path)
        logged = any(line["step"] == first and any(name.startswith("eval/") for name in line) for _, line in lines)
    return 0.0 if training.engine.broadcast(logged) else evaluate_at(training, monitor, alive, first)


def evaluate_now(training: Training, step: int, beat: Callable[[], object]) -> dict[str, float]:
    """Evaluates the weights as they are; eval/WEIGHTS/SPLIT/SCORE -> value, on the first rank, else empty.

    Every rank must call it: weights are gathered, images shared out. `beat` says that this rank lives.
    """
    config, engine = training.config, training.engine
    task = prepare(config)
    task = replace(task, prompts=first_prompts(task.prompts, config.train.eval_size))
    real = references(config, task)
    values: dict[str, float] = {}
    for kind in config.train.eval_weights:
        out = watched_folder(config, step, kind)
        gathered = engine.gather("weights" if kind == "raw" else kind)
        if engine.rank == 0:
            _write_unet(training, task, unet_weights(gathered), out, kind)
        engine.barrier()
        beat()
        _draw_and_score(training, task, real, out, f"{kind}, step {step}", kind, beat)
        write_config(out, config)
        if engine.rank == 0:
            splits = read_json(out / "scores.json")["splits"]
            scored = read_json(out / "scores.json")["protocol"]
            found = {f"{s}/{name}": v for s, part in splits.items() for name, v in part.items() if _is_number(v)}
            values |= {f"eval/{kind}/{name}": value for name, value in found.items()}
            _keep_best(training, unet_weights(gathered), kind, step, splits, scored, sorted(values))
        engine.barrier()
        beat()
    return values


def _write_unet(training: Training, task: Task, weights: dict[str, Tensor], out: Path, kind: str) -> None:
    """The U-Net that draws, in the evaluation's own type; what was made otherwise there is set aside.

    Other weights, or other threads, captions or versions since: a training is not to end for that.
    """
    unet = student_unet(training.unet, weights, DTYPES[training.config.teacher.dtype])
    aside = out.with_name(f".{out.name}.new")
    with atomic_write(aside / "unet") as folder:
        unet.save_pretrained(folder, safe_serialization=True)
    network, pipe = fingerprint(aside / "unet"), training.teacher.pipe
    wanted = protocol_facts(
        EvaluatedModel("", pipe, network, kind, training.config.teacher.dtype), with_pipeline_defaults(task, pipe)
    )
    plan = out / "plan.json"
    if out.exists() and not (plan.is_file() and wanted.items() <= read_json(plan).items()):
        number = sum(1 for _ in out.parent.glob(f"{out.name}-before-*"))
        out.rename(out.with_name(f"{out.name}-before-{number}"))
    if out.exists():
        remove(aside)
    else:
        aside.rename(out)


def _draw_and_score(
    training: Training,
    task: Task,
    real: References,
    out: Path,
    name: str,
    kind: str,
    beat: Callable[[], object],
) -> None:
    config, teacher = training.config, training.teacher
    unet = load_unet(out / "unet", teacher.dtype).to(teacher.device)
    pipe = teacher.pipeline(task.protocol.sampler, unet)
    system = EvaluatedModel(name, pipe, fingerprint(out / "unet"), kind, config.teacher.dtype, beat=beat)
    with torch.compiler.set_stance("force_eager"):  # each evaluation's U-Net is another, to be compiled anew
        evaluate(system, task, real, out)


def _keep_best(
    training: Training,
    weights: dict[str, Tensor],
    kind: str,
    step: int,
    splits: dict[str, dict[str, Any]],
    scored: dict[str, Any],
    logged: list[str],
) -> None:
    """Exports the student when the first metric says that it is the best so far; notes it in best.json."""
    config, run = training.config, training.folder
    metric = METRICS[config.eval.metrics[0]]
    path = run / "best.json"
    before = read_json(path) if path.is_file() else None
    value = splits[ALL][metric.best]
    how = {key: each for key, each in scored.items() if key not in ("network", "weights")}
    note = {"score": metric.best, "split": ALL, "logged": sorted({*logged, *(before or {}).get("logged", [])})}
    found = {"value": value, "step": step, "weights": kind}
    if not math.isfinite(value) or (before and _stays(before, {**note, **found, "how": how}, metric.lower)):
        if before:
            write_json(path, {**before, "logged": note["logged"]})
        return
    folder = run / "best" / f"step-{step:06d}-{kind}"
    trained = student_unet(training.unet, weights, torch.float32)
    with atomic_write(folder) as aside:
        export_student(aside, trained, training.teacher.folder, model_card(config, kind, step))
    write_json(path, {**note, **found, "folder": str(folder.relative_to(run)), "how": how})


def _stays(best: dict[str, Any], found: dict[str, Any], lower: bool) -> bool:
    """Whether the best so far stays that; not where it was of these very weights, which a run that was set back trained
    once more, nor where the two can't be compared: by another score, of other captions, protocols or statistics.
    """
    again = (best["step"], best["weights"]) == (found["step"], found["weights"])
    if again or (best["score"], best["how"]) != (found["score"], found["how"]):
        return False
    return found["value"] >= best["value"] if lower else found["value"] <= best["value"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
