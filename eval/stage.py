"""The evaluation stage: teacher and student draw the same captions with the same seeds and are scored.

Out: `paths.reference` (the teacher's features and scores, shared by experiments) and `paths.run`/eval-raw or eval-ema
(the student's). Each of them may hold grid/ (`eval.grid`) and compbench/ (`eval.compbench`).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from randcond.data.teacher_of import text_options
from randcond.eval.compbench.run import evaluate_compbench, load_scorer
from randcond.eval.evaluate import EvaluatedModel, draw, evaluate, prepare, references
from randcond.eval.images.prompts import grid_prompts
from randcond.launch.config.paths import eval_folder, resolve_path, student_folder
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import write_config
from randcond.launch.runtime.ranks import device
from randcond.launch.runtime.this_command import stage_command
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.checkpoints.hub import local_folder
from randcond.model_zoo.kernels.compilation import compile_drawing
from randcond.model_zoo.pipelines import load_frozen_pipeline, pipeline_size

ALL_SHOWN = 1_000_000  # for `eval.shown`: more than any grid has, so every image of it is kept


def run(config: Config) -> None:
    """Draws and scores what is missing. Every rank must call it and draws a part of the chunks.

    Raises UserError if the student is not trained yet, or weights or statistics are missing.
    """
    teacher = local_folder(resolve_path(config.teacher.path))
    models: dict[str, tuple[Path, Path, str]] = {"teacher": (teacher, Path(config.paths.reference), "raw")}
    if config.trains:
        kind = config.eval.weights
        models["student"] = trained_student(config, kind), eval_folder(config), kind
    task = prepare(config)
    real = references(config, task)
    scorer = load_scorer(config.eval) if config.eval.compbench.lists else None
    for name in config.eval.of:
        folder, out, weights = models[name]
        sampler, is_student = task.protocol.sampler, name == "student"
        pipe = load_frozen_pipeline(folder, config.teacher.dtype, device(), sampler, is_student, text_options(config))
        size = pipeline_size(pipe)
        compile_drawing(pipe, config.eval.compile)
        compiled = None if config.eval.compile == "none" else config.eval.compile
        network = folder_fingerprint(folder)
        model = EvaluatedModel(name, pipe, network, weights, config.teacher.dtype, compiled, size)
        evaluate(model, task, real, out)
        write_config(out, config)
        if config.eval.grid:
            grid = replace(task, prompts=grid_prompts(config), extractors={}, ev=replace(task.ev, shown=ALL_SHOWN))
            draw(model, grid, out / "grid", f"grid ({name})")
        if scorer:
            evaluate_compbench(task, scorer, out, name, partial(draw, model))


def trained_student(config: Config, weights: str) -> Path:
    """Returns the folder of the finished run's student with `weights` (raw or ema).

    Raises UserError if there is none.
    """
    folder = student_folder(config, weights)
    finished = (Path(config.paths.run) / "train.json").is_file()
    if finished and weights == "ema" and not folder.is_dir() and student_folder(config, "raw").is_dir():
        raise UserError(
            f"no EMA weights at {folder}: the run was trained with engine.ema=off; take its raw weights "
            f"(eval.weights=raw, or --weights raw of randcond export)"
        )
    if not finished or not folder.is_dir():
        raise UserError(f"no trained student at {folder}: train it with {stage_command('train')}")
    return folder
