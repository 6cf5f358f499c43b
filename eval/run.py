"""The evaluation stage: teacher and student draw the same captions by the same seeds, and are scored.

Out: `paths.reference` (the teacher's rows and scores, shared) and `paths.run`/eval-raw or eval-ema (the student's).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from randcond.data.files import read_json, write_json
from randcond.data.ranks import cpu_threads, device, rank
from randcond.eval.compbench.run import evaluate_compbench, load_scorer
from randcond.eval.features import load_extractors
from randcond.eval.generate import Task, generate, load_rows
from randcond.eval.metrics import METRICS, find_metrics, warnings
from randcond.eval.prompts import choose_prompts, grid_prompts
from randcond.eval.statistics import Reference, read_statistics
from randcond.launch.config import Config, eval_folder, resolve_path, student_folder
from randcond.launch.logs import say_everywhere
from randcond.launch.protocols import protocol_of
from randcond.model_zoo.sampler import default_setting
from randcond.model_zoo.systems import load_system
from randcond.model_zoo.teacher import folder_fingerprint, local_folder

GRID = 1_000_000  # all of a grid is shown
References = dict[tuple[str, str], Reference]  # (split, row) -> statistics of real images


def run(config: Config) -> None:
    """Draws and scores what is missing; every rank takes its share of the chunks.

    Raises ValueError when the student is not trained yet, or weights or statistics are not there.
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
        evaluate(config, task, real, folder, out, weights, who)
        if config.eval.grid:
            grid = replace(task, prompts=grid_prompts(config), extractors={}, ev=replace(task.ev, shown=GRID))
            draw(config, grid, folder, out / "grid", weights, f"grid ({who})")
        if scorer:
            drawn = partial(_draw_more, config, folder, weights)
            evaluate_compbench(task, scorer, out, who, drawn)


def prepare(config: Config) -> Task:
    """Prompts, protocol and extractors of an experiment; raises ValueError naming what of them is not there."""
    wanted = sorted({extractor for m in find_metrics(config.eval.metrics).values() for extractor in m.needs.values()})
    extractors = load_extractors(wanted, config.eval, device())
    return Task(choose_prompts(config), protocol_of(config.eval), config.eval, extractors)


def references(config: Config, task: Task) -> References:
    """The statistics of real images that the metrics compare with, by split; raises ValueError naming what is wrong."""
    found: References = {}
    for metric in find_metrics(config.eval.metrics).values():
        if metric.compares is None:
            continue
        assert config.eval.statistics is not None  # checked before anything is loaded
        for split in task.prompts.splits:
            extractor = task.extractors[metric.needs[metric.compares]].identity
            known = (config.eval.statistics, split, metric.compares, extractor, task.protocol.size)
            found[split, metric.compares] = read_statistics(*known)
    return found


def evaluate(
    config: Config,
    task: Task,
    real: References,
    folder: Path,
    out: Path,
    weights: str,
    who: str,
    beat: Callable[[], object] = lambda: None,
) -> None:
    """Draws with the pipeline in `folder` what `out` lacks, and scores it; the last is the first rank's."""
    made_of = draw(config, task, folder, out, weights, f"drawing ({who})", beat)
    compared = {f"{split} {row}": reference.identity for (split, row), reference in real.items()}
    facts = {"protocol": {**made_of, "statistics": compared}, "metrics": config.eval.metrics}
    path = out / "scores.json"
    if rank() != 0 or (path.is_file() and facts.items() <= read_json(path).items()):
        return
    scores = score(task, real, out)
    write_json(path, {**facts, **scores})
    say_everywhere(f"eval: {who}: {headline(config.eval.metrics, scores['splits'])}")


def draw(
    config: Config,
    task: Task,
    folder: Path,
    out: Path,
    weights: str,
    what: str,
    beat: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Draws with the pipeline in `folder` what `out` lacks; everything that the images depend on."""
    pipe = load_system(folder, config.teacher.dtype, device(), task.protocol.sampler)
    defaults = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    own = {key: default_setting(pipe, name) for key, name in defaults.items() if getattr(task.protocol, key) is None}
    task = replace(task, protocol=replace(task.protocol, **own))
    made_of = protocol_facts(config, task, folder_fingerprint(folder), weights)
    generate(task, pipe, out, made_of, what, beat)
    return made_of


def _draw_more(config: Config, folder: Path, weights: str, task: Task, out: Path, what: str) -> dict[str, Any]:
    return draw(config, task, folder, out, weights, what)


def protocol_facts(config: Config, task: Task, network: str, weights: str) -> dict[str, Any]:
    """Everything that images and their features depend on; `network` is the fingerprint of what drew."""
    ev, protocol, prompts = task.ev, task.protocol, task.prompts
    return {
        "network": network,
        "weights": weights,
        "protocol": protocol.name,
        "images": protocol.images,
        "sampler": protocol.sampler,
        "steps": protocol.steps,
        "guidance": protocol.guidance,
        "resolution": ev.resolution,
        "prompts_sha256": prompts.sha256,
        "splits": {split: len(ids) for split, ids in prompts.splits.items()},
        "seed": ev.seed,
        "batch": ev.batch,
        "dtype": config.teacher.dtype,
        "threads": cpu_threads(),
        "extractors": {name: extractor.identity for name, extractor in task.extractors.items()},
        "saved": ev.save,
        "shown": ev.shown,
    }


def score(task: Task, real: References, out: Path) -> dict[str, Any]:
    """Scores by split, and what must be known to read them, of an evaluation whose chunks are all there."""
    metrics = find_metrics(task.ev.metrics)
    captions = task.prompts.captions
    splits: dict[str, dict[str, Any]] = {split: {"images": len(ids)} for split, ids in task.prompts.splits.items()}
    notes: dict[str, list[str]] = {}
    for row_names in sorted({tuple(sorted(metric.needs)) for metric in metrics.values()}):  # each read once
        rows = {row: load_rows(out, len(captions), task.ev.batch, row) for row in row_names}
        for split, ids in task.prompts.splits.items():
            part = {row: values[ids] for row, values in rows.items()}
            said = [captions[number] for number in ids]
            for metric in metrics.values():
                if tuple(sorted(metric.needs)) == row_names:
                    compared = real.get((split, metric.compares)) if metric.compares else None
                    splits[split] |= metric.score(part, said, compared)
    for split, ids in task.prompts.splits.items():
        first = next((reference for key, reference in real.items() if key[0] == split), None)
        if found := warnings(task.ev.metrics, len(ids), first):
            notes[split] = found
    return {"splits": splits, "notes": notes}


def headline(metrics: list[str], splits: dict[str, dict[str, Any]]) -> str:
    """The scores of an evaluation in a line."""
    names = [best for name in metrics if (best := METRICS[name].best)]
    return "; ".join(f"{split} {', '.join(f'{n} {v[n]:.4g}' for n in names)}" for split, v in splits.items())


def trained_student(config: Config, weights: str) -> Path:
    """The exported student of a finished run; raises ValueError when there is none."""
    folder = student_folder(config, weights)
    if not (Path(config.paths.run) / "train.json").is_file() or not folder.is_dir():
        raise ValueError(f"no trained student at {folder}: train it with `randcond run train {config.name}`")
    return folder
