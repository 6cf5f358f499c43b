"""One network's evaluation: its images drawn, what is read from them, its scores by split.

In: a pipeline ready to draw, a task (prompts, protocol, extractors), statistics of real images. Out: OUT/chunk-*,
OUT/plan.json (what images depend on) and OUT/scores.json (scores, and everything they depend on).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from randcond.eval.images.generate import Task, generate, load_rows
from randcond.eval.images.prompts import choose_prompts
from randcond.eval.scores.extractors import load_extractors
from randcond.eval.scores.metrics import METRICS, find_metrics, warnings
from randcond.eval.scores.statistics import Reference, read_statistics
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import cpu_threads, device, rank
from randcond.model_zoo.sampler import default_setting, own_resolution, sampler_dtype

References = dict[tuple[str, str], Reference]  # (split, row) -> statistics of real images


@dataclass(frozen=True)
class EvaluatedModel:
    """A network that draws, in its pipeline."""

    name: str  # for progress and logs
    pipe: Any  # a diffusers pipeline with the protocol's sampler
    network: str  # fingerprint of its weights
    weights: str  # raw or ema
    dtype: str
    compiled: str | None = None  # blocks or whole
    size: dict[str, int] = field(default_factory=dict)  # parameters and cost, as `system_size` counts them
    beat: Callable[[], object] = lambda: None  # called after every chunk


def prepare(config: Config) -> Task:
    """Prompts, protocol and extractors of an experiment; raises UserError naming what of them is not there."""
    wanted = sorted({extractor for m in find_metrics(config.eval.metrics).values() for extractor in m.needs.values()})
    extractors = load_extractors(wanted, config.eval, device())
    return Task(choose_prompts(config), protocol_of(config.eval), config.eval, extractors)


def references(config: Config, task: Task) -> References:
    """The statistics of real images that the metrics compare with, by split; raises UserError naming what is wrong."""
    found: References = {}
    for metric in find_metrics(config.eval.metrics).values():
        if metric.compares is None:
            continue
        assert config.eval.statistics is not None  # checked before anything is loaded
        for split in task.prompts.splits:
            extractor = task.extractors[metric.needs[metric.compares]]
            wanted = {"extractor": extractor.identity, "jpeg": task.protocol.jpeg}
            reference = read_statistics(config.eval.statistics, split, metric.compares, wanted, extractor.width)
            if metric.samples:
                reference.features()  # there and whole, or it says so
            found[split, metric.compares] = reference
    _check_of_the_same_images(found)
    return found


def _check_of_the_same_images(real: References) -> None:
    """Raises UserError when splits' statistics in one folder were made of different images."""
    for row in {row for _, row in real}:
        made = {each.facts.get("images_sha256"): each.path for (_, of), each in real.items() if of == row}
        made.pop(None, None)  # another tool's
        if len(made) > 1:
            first, second = list(made.values())[:2]
            raise UserError(
                f"eval.statistics: {first} and {second.name} were made of different images; remove both, and make "
                f"all splits by one `randcond eval stats --splits`"
            )


def evaluate(system: EvaluatedModel, task: Task, real: References, out: Path) -> None:
    """Draws what `out` lacks, and scores it; the last is the first rank's."""
    check_sizes(system, task, real)
    made_of = draw(system, task, out, f"drawing ({system.name})")
    compared = {f"{split} {row}": reference.identity for (split, row), reference in real.items()}
    splits = {split: len(ids) for split, ids in task.prompts.splits.items()}
    scored = {"splits": splits, "splits_sha256": task.prompts.splits_sha256, "statistics": compared}
    facts = {"protocol": {**made_of, **scored}, "metrics": task.ev.metrics}
    path = out / "scores.json"
    known = read_json(path) if path.is_file() else {}
    if rank() != 0 or (facts.items() <= known.items() and known.get("size") == system.size):
        return
    scores = score(task, real, out)
    write_json(path, {**facts, **scores, "size": system.size})
    log.info(f"eval: {system.name}: {headline(task.ev.metrics, scores['splits'])}")
    for split, notes in scores["notes"].items():
        for note in notes:
            log.info(f"eval: {system.name}: {split}: {note}")


def check_sizes(system: EvaluatedModel, task: Task, real: References) -> None:
    """Raises UserError when images are scored as drawn and the statistics are of images of another size."""
    side = task.protocol.size or task.ev.resolution or own_resolution(system.pipe)
    for reference in real.values():
        if reference.facts.get("size") not in (None, side):
            raise UserError(
                f"eval.statistics: {reference.path}: of images of {reference.facts['size']} pixels, scored are images "
                f"of {side}; `randcond eval stats --size {side}` makes the others"
            )


def draw(system: EvaluatedModel, task: Task, out: Path, what: str) -> dict[str, Any]:
    """Draws what `out` lacks; everything that the images depend on."""
    task = with_pipeline_defaults(task, system.pipe)
    made_of = protocol_facts(system, task)
    generate(task, system.pipe, out, made_of, what, system.beat)
    return made_of


def with_pipeline_defaults(task: Task, pipe: Any) -> Task:
    """The task with what its protocol leaves to the pipeline filled in."""
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    own = {key: default_setting(pipe, name) for key, name in names.items() if getattr(task.protocol, key) is None}
    return replace(task, protocol=replace(task.protocol, **own))


def protocol_facts(system: EvaluatedModel, task: Task) -> dict[str, Any]:
    """Everything that images and their features depend on."""
    ev, protocol, prompts = task.ev, task.protocol, task.prompts
    return {
        "network": system.network,
        "weights": system.weights,
        "protocol": protocol.name,
        "images": protocol.images,
        "sampler": protocol.sampler,
        "steps": protocol.steps,
        "guidance": protocol.guidance,
        "resolution": ev.resolution,
        "prompts_sha256": prompts.sha256,
        "seed": ev.seed,
        "batch": ev.batch,
        "dtype": system.dtype,
        "sampler_dtype": sampler_dtype(system.pipe),
        "threads": cpu_threads(),
        "compile": system.compiled,
        "device": device().type,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "pillow")},
        "extractors": {name: extractor.identity for name, extractor in task.extractors.items()},
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
        compared_with = {row: reference for (of, row), reference in real.items() if of == split}
        if found := warnings(task.ev.metrics, len(ids), compared_with):
            notes[split] = found
    return {"splits": splits, "notes": notes}


def headline(metrics: list[str], splits: dict[str, dict[str, Any]]) -> str:
    """The scores of an evaluation in a line."""
    names = [METRICS[name].best for name in metrics]
    return "; ".join(f"{split} {', '.join(f'{n} {v[n]:.4g}' for n in names)}" for split, v in splits.items())
