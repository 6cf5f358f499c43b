"""The evaluation stage: teacher and student draw the same captions with the same seeds and are scored.

Out: `paths.reference` (the teacher's features and scores, shared by experiments) and `paths.run`/eval-raw or eval-ema
(the student's). Each of them may hold grid/ (`eval.grid`), compbench/ (`eval.compbench`), geneval/ (`eval.geneval`),
geneval2/ (`eval.geneval2`) and cost.json (`eval.cost`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from randcond.data.teacher_of import text_options
from randcond.eval.compbench.run import evaluate_compbench, load_scorer
from randcond.eval.evaluate import (
    EvaluatedModel,
    References,
    draw,
    evaluate,
    prepare,
    references,
    with_pipeline_defaults,
)
from randcond.eval.geneval.networks import load_geneval_networks
from randcond.eval.geneval.run import evaluate_geneval
from randcond.eval.geneval2.judge import load_judge
from randcond.eval.geneval2.run import evaluate_geneval2
from randcond.eval.images.drawing_cost import cost_facts, is_measured, measure_cost
from randcond.eval.images.generate import Task
from randcond.eval.images.prompts import grid_prompts
from randcond.eval.trained_runs import trained_student
from randcond.launch.config.paths import eval_folder, resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.runtime.artefacts import write_config
from randcond.launch.runtime.ranks import device, rank
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.checkpoints.hub import local_folder
from randcond.model_zoo.kernels.compilation import compile_drawing
from randcond.model_zoo.pipelines import load_frozen_pipeline, pipeline_size

ALL_SHOWN = 1_000_000  # for `eval.shown`: more than any grid has, so every image of it is kept


@dataclass(frozen=True)
class _Network:
    """A network to evaluate."""

    name: str  # teacher or student
    folder: Path  # of its pipeline
    out: Path  # of its evaluation
    weights: str  # raw or ema
    fingerprint: str


def run(config: Config) -> None:
    """Draws and scores what is missing. Every rank must call it and draws a part of the chunks.

    Raises UserError if the student is not trained yet, or weights or statistics are missing.
    """
    networks = list(_networks(config))
    task = prepare(config)
    real = references(config, task)
    benchmarks = list(_benchmarks(config))
    for network in networks:
        _evaluate(config, network, task, real, benchmarks)
    if config.eval.cost and rank() == 0:  # now that no other rank draws
        for network in networks:
            _measure(config, network, task)


def _networks(config: Config) -> Iterator[_Network]:
    for name in config.eval.of:
        if name == "teacher":
            folder, out, weights = local_folder(resolve_path(config.teacher.path)), Path(config.paths.reference), "raw"
        else:
            weights = config.eval.weights
            folder, out = trained_student(config, weights), eval_folder(config)
        yield _Network(name, folder, out, weights, folder_fingerprint(folder))


def _benchmarks(config: Config) -> Iterator[Callable[..., None]]:
    """Yields functions (task, out, name, draw) that draw and score the prompts of a benchmark."""
    ev = config.eval
    if ev.compbench.lists:
        yield partial(evaluate_compbench, scorer=load_scorer(ev))
    if ev.geneval.prompts:
        networks = load_geneval_networks(ev.geneval.detector, ev.geneval.clip, device())
        yield partial(evaluate_geneval, networks=networks)
    if ev.geneval2.prompts:
        yield partial(evaluate_geneval2, judge=load_judge(ev.geneval2.judge, device()))


def _load(config: Config, network: _Network, task: Task) -> Any:
    sampler, is_student = task.protocol.sampler, network.name == "student"
    return load_frozen_pipeline(
        network.folder, config.teacher.dtype, device(), sampler, is_student, text_options(config)
    )


def _evaluate(
    config: Config, network: _Network, task: Task, real: References, benchmarks: Sequence[Callable[..., None]]
) -> None:
    """Draws and scores what is missing of one network."""
    pipe = _load(config, network, task)
    size = pipeline_size(pipe)
    compile_drawing(pipe, config.eval.compile)
    settings = network.fingerprint, network.weights, config.teacher.dtype, _compiled(config), size
    model = EvaluatedModel(network.name, pipe, *settings)
    evaluate(model, task, real, network.out)
    write_config(network.out, config)
    if config.eval.grid:
        grid = replace(task, prompts=grid_prompts(config), extractors={}, ev=replace(task.ev, shown=ALL_SHOWN))
        draw(model, grid, network.out / "grid", f"grid ({network.name})")
    for benchmark in benchmarks:
        benchmark(task=task, out=network.out, name=network.name, draw=partial(draw, model))


def _measure(config: Config, network: _Network, task: Task) -> None:
    """Measures what drawing takes with one network, unless that is known."""
    known = {"network": network.fingerprint, "dtype": config.teacher.dtype, "compile": _compiled(config)}
    facts = cost_facts(task, known)
    if not is_measured(network.out, facts):
        pipe = _load(config, network, task)
        compile_drawing(pipe, config.eval.compile)
        measure_cost(pipe, with_pipeline_defaults(task, pipe), facts, network.out, network.name)


def _compiled(config: Config) -> str | None:
    return None if config.eval.compile == "none" else config.eval.compile
