"""The evaluation stage: teacher and student draw the same captions by the same seeds, and are scored.

Out: `paths.reference` (the teacher's rows and scores, shared) and `paths.run`/eval-raw or eval-ema (the student's);
below each, grid/ (`eval.grid`) and compbench/ (`eval.compbench`).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from randcond.eval.compbench.run import evaluate_compbench, load_scorer
from randcond.eval.evaluate import EvaluatedModel, draw, evaluate, prepare, references
from randcond.eval.images.prompts import grid_prompts
from randcond.launch.config.paths import eval_folder, resolve_path, student_folder
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import write_config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.fingerprint import folder_fingerprint
from randcond.model_zoo.hub import local_folder
from randcond.model_zoo.kernels.compilation import compile_drawing
from randcond.model_zoo.pipelines import load_frozen_pipeline, pipeline_size

GRID = 1_000_000  # all of a grid is shown


def run(config: Config) -> None:
    """Draws and scores what is missing; every rank takes its share of the chunks.

    Raises UserError when the student is not trained yet, or weights or statistics are not there.
    """
    teacher = local_folder(resolve_path(config.teacher.path))
    arms: dict[str, tuple[Path, Path, str]] = {"teacher": (teacher, Path(config.paths.reference), "raw")}
    if config.trains:
        kind = config.eval.weights
        arms["student"] = trained_student(config, kind), eval_folder(config), kind
    task = prepare(config)
    real = references(config, task)
    scorer = load_scorer(config.eval) if config.eval.compbench.lists else None
    for who in config.eval.of:
        folder, out, weights = arms[who]
        pipe = load_frozen_pipeline(folder, config.teacher.dtype, device(), task.protocol.sampler)
        size = pipeline_size(pipe)
        compile_drawing(pipe, config.eval.compile)
        compiled = None if config.eval.compile == "none" else config.eval.compile
        network = folder_fingerprint(folder)
        system = EvaluatedModel(who, pipe, network, weights, config.teacher.dtype, compiled, size)
        evaluate(system, task, real, out)
        write_config(out, config)
        if config.eval.grid:
            grid = replace(task, prompts=grid_prompts(config), extractors={}, ev=replace(task.ev, shown=GRID))
            draw(system, grid, out / "grid", f"grid ({who})")
        if scorer:
            evaluate_compbench(task, scorer, out, who, partial(draw, system))


def trained_student(config: Config, weights: str) -> Path:
    """The exported student of a finished run; raises UserError when there is none."""
    folder = student_folder(config, weights)
    if not (Path(config.paths.run) / "train.json").is_file() or not folder.is_dir():
        raise UserError(f"no trained student at {folder}: train it with `randcond run train {config.name}`")
    return folder
