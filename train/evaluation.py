"""Evaluation during training: scores raw and EMA weights every `train.eval_every` steps and keeps the best student.

In: a training run at some step. Out: RUN/evaluations/step-NNNNNN/{raw,ema}/ (the evaluated denoiser, chunks of images,
scores), values for TensorBoard and metrics.jsonl, RUN/best.json and RUN/best/ (students in diffusers format). All ranks
take part. Nothing is deleted.
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
from randcond.eval.features.network_weights import fingerprint
from randcond.eval.images.generate import Task
from randcond.eval.images.identity import same_evaluation
from randcond.eval.images.prompts import ALL, first_prompts
from randcond.eval.scores.metrics import METRICS
from randcond.launch.config.paths import watched_folder
from randcond.launch.config.sections import Config
from randcond.launch.device.out_of_memory import naming_memory
from randcond.launch.runtime.artefacts import write_config
from randcond.launch.runtime.files import atomic_write, read_record, remove, write_json
from randcond.launch.runtime.json_lines import whole_lines
from randcond.model_zoo.checkpoints.diffusers_folder import compute_dtype
from randcond.model_zoo.export import denoiser_weights, export_student, load_denoiser, trained_student
from randcond.train.faults.heartbeat import Heartbeat
from randcond.train.setup import Training
from randcond.train.state.model_card import model_card
from randcond.train.watch.monitor import Monitor


def preload_evaluation_inputs(config: Config) -> None:
    """Loads and discards everything that later evaluations need, so that errors come at the start, not after days.

    Raises UserError naming the captions, metrics, weights or statistics that are missing or wrong.
    """
    if config.train.eval_every:
        check_evaluation(config)
        references(config, prepare(config))


def evaluate_if_due(training: Training, monitor: Monitor, heartbeat: Heartbeat, step: int) -> float:
    """Evaluates if `step` is a multiple of `train.eval_every`, and logs the scores. Returns the seconds it took.

    Every rank must call it.
    """
    every, started = training.config.train.eval_every, time.monotonic()
    if not (every and step and step % every == 0):
        return 0.0
    values = evaluate_weights(training, step, lambda: heartbeat.report(step, "evaluating"))
    seconds = time.monotonic() - started
    monitor.add_scores(step, values, seconds)
    return seconds


def evaluate_interrupted(training: Training, monitor: Monitor, heartbeat: Heartbeat, step: int) -> float:
    """Evaluates the step that a run resumes from, if the run was killed during that evaluation.

    In that case its scores are not in metrics.jsonl. Returns the seconds it took. Every rank must call it.
    """
    logged = False
    if training.engine.rank == 0:  # the monitor of rank 0 has removed incomplete lines from the file
        path = training.folder / "metrics.jsonl"
        lines = whole_lines(path)
        logged = any(line["step"] == step and any(name.startswith("eval/") for name in line) for _, line in lines)
    return 0.0 if training.engine.broadcast(logged) else evaluate_if_due(training, monitor, heartbeat, step)


@naming_memory("set train.eval_every=0, and evaluate after the training")
def evaluate_weights(training: Training, step: int, beat: Callable[[], object]) -> dict[str, float]:
    """Evaluates the current weights. Returns "eval/WEIGHTS/SPLIT/SCORE" -> value on rank 0, {} on the other ranks.

    Every rank must call it: the weights are gathered from all ranks, and every rank draws a share of the images.
    `beat` is called regularly, to report progress to the heartbeat.
    """
    config, engine = training.config, training.engine
    task = prepare(config)
    task = replace(task, prompts=first_prompts(task.prompts, config.train.eval_size), during_training=True)
    real = references(config, task)
    values: dict[str, float] = {}
    for kind in config.train.eval_weights:
        out = watched_folder(config, step, kind)
        gathered = engine.gather("weights" if kind == "raw" else kind)
        if engine.rank == 0:
            _write_denoiser(training, task, denoiser_weights(gathered), out, kind)
        engine.barrier()
        beat()
        _draw_and_score(training, task, real, out, f"{kind}, step {step}", kind, beat)
        write_config(out, config)
        if engine.rank == 0:
            scores = read_record(out / "scores.json", "splits", "protocol")
            splits = scores["splits"]
            found = {f"{s}/{name}": v for s, part in splits.items() for name, v in part.items() if _is_number(v)}
            values |= {f"eval/{kind}/{name}": value for name, value in found.items()}
            _update_best(training, denoiser_weights(gathered), kind, step, splits, scores["protocol"], sorted(values))
        engine.barrier()
        beat()
    return values


def _write_denoiser(training: Training, task: Task, weights: dict[str, Tensor], out: Path, kind: str) -> None:
    """Saves the denoiser to evaluate in a folder of `out`, in the dtype of the evaluation.

    `out` may hold an evaluation made with other weights, threads, captions or library versions. That folder is then
    renamed to NAME-before-N instead of raising an error, so that the training goes on.
    """
    denoiser = trained_student(training.student, weights, compute_dtype(training.config.teacher.dtype))
    temporary, part = out.with_name(f".{out.name}.new"), training.teacher.family.part
    with atomic_write(temporary / part) as folder:
        denoiser.save_pretrained(folder, safe_serialization=True)
    network, pipe = fingerprint(temporary / part), training.teacher.pipe
    expected = protocol_facts(
        EvaluatedModel("", pipe, network, kind, training.config.teacher.dtype), with_pipeline_defaults(task, pipe)
    )
    plan = out / "plan.json"
    if out.exists() and not (plan.is_file() and same_evaluation(read_record(plan), expected)):
        number = sum(1 for _ in out.parent.glob(f"{out.name}-before-*"))
        out.rename(out.with_name(f"{out.name}-before-{number}"))
    if out.exists():
        remove(temporary)
    else:
        temporary.rename(out)


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
    part = out / teacher.family.part
    pipe = teacher.pipeline(task.protocol.sampler, load_denoiser(part, teacher.dtype).to(teacher.device))
    model = EvaluatedModel(name, pipe, fingerprint(part), kind, config.teacher.dtype, beat=beat)
    # Eager, because every evaluation has a new denoiser, which would be compiled again.
    with torch.compiler.set_stance("force_eager"):
        evaluate(model, task, real, out)


def _update_best(
    training: Training,
    weights: dict[str, Tensor],
    kind: str,
    step: int,
    splits: dict[str, dict[str, Any]],
    protocol: dict[str, Any],
    logged: list[str],
) -> None:
    """Exports the student and updates best.json if its score by the first metric is the best so far."""
    config, run = training.config, training.folder
    metric = METRICS[config.eval.metrics[0]]
    path = run / "best.json"
    best = read_record(path, "step", "weights", "score", "value", "how") if path.is_file() else None
    value = splits[ALL][metric.best]
    how = {key: each for key, each in protocol.items() if key not in ("network", "weights")}
    score = {"score": metric.best, "split": ALL, "logged": sorted({*logged, *(best or {}).get("logged", [])})}
    found = {"value": value, "step": step, "weights": kind}
    if not math.isfinite(value) or (best and _best_remains(best, {**score, **found, "how": how}, metric.lower)):
        if best:
            write_json(path, {**best, "logged": score["logged"]})
        return
    folder = run / "best" / f"step-{step:06d}-{kind}"
    trained = trained_student(training.student, weights, torch.float32)
    teacher = training.teacher.folder
    with atomic_write(folder) as temporary:
        export_student(temporary, trained, teacher, model_card(config, kind, step, teacher))
    write_json(path, {**score, **found, "folder": str(folder.relative_to(run)), "how": how})


def _best_remains(best: dict[str, Any], found: dict[str, Any], lower: bool) -> bool:
    """Returns True if the best result so far is at least as good as the one found. `lower`: lower scores are better.

    Returns False if both are of the same step and weights: a run that resumed from an earlier step trained that step
    again. Returns False if the two can't be compared: other score, captions, protocol or statistics.
    """
    same_step = (best["step"], best["weights"]) == (found["step"], found["weights"])
    if same_step or best["score"] != found["score"] or not same_evaluation(best["how"], found["how"]):
        return False
    return found["value"] >= best["value"] if lower else found["value"] <= best["value"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
