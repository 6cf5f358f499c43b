"""Evaluates one network: draws its images, reads their features, computes the scores of each split.

In: a pipeline, a task (captions, protocol, extractors), statistics of real images. Out: OUT/chunk-*, OUT/plan.json
(identity of the images), OUT/scores.json (scores, and everything that they depend on) and OUT/influence.safetensors (of
each image on each score).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from randcond.eval.features.load import load_extractors
from randcond.eval.images.generate import Task, generate, load_features
from randcond.eval.images.identity import further_settings, same_evaluation
from randcond.eval.images.prompts import choose_prompts
from randcond.eval.scores.bootstrap import intervals, save_influence
from randcond.eval.scores.metrics import METRICS, find_metrics, needed_extractors, warnings
from randcond.eval.scores.statistics import Reference, read_statistics
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_record, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import cpu_threads, device, rank
from randcond.model_zoo.sampler import default_setting, own_resolution, sampler_dtype

References = dict[tuple[str, str], Reference]  # (split, feature) -> statistics of real images


@dataclass(frozen=True)
class EvaluatedModel:
    """A network to evaluate, in its pipeline."""

    name: str  # for progress bars and logs
    pipe: Any  # a diffusers pipeline with the protocol's sampler
    network: str  # fingerprint of the weights
    weights: str  # raw or ema
    dtype: str
    compiled: str | None = None  # blocks or whole
    size: dict[str, int] = field(default_factory=dict)  # numbers of parameters and MACs, from pipeline_size()
    beat: Callable[[], object] = lambda: None  # called after every chunk (heartbeat)


def prepare(config: Config) -> Task:
    """Returns the experiment's captions, protocol and extractors; raises UserError naming what is missing."""
    names = sorted(needed_extractors(find_metrics(config.eval.metrics)))
    extractors = load_extractors(names, config.eval, device())
    facts = config.teacher.text_facts
    return Task(choose_prompts(config), protocol_of(config.eval), config.eval, extractors, facts)


def references(config: Config, task: Task) -> References:
    """Returns the statistics of real images that the metrics need; raises UserError naming what is wrong."""
    real: References = {}
    for metric in find_metrics(config.eval.metrics).values():
        if metric.compares is None:
            continue
        assert config.eval.statistics is not None  # check_evaluation() has checked it
        for split in task.prompts.splits:
            extractor = task.extractors[metric.needs[metric.compares]]
            expected = {"extractor": extractor.identity, "jpeg": task.protocol.jpeg}
            reference = read_statistics(config.eval.statistics, split, metric.compares, expected, extractor.width)
            if metric.samples:
                reference.features()  # raises UserError now if the file is missing or damaged
            real[split, metric.compares] = reference
    _check_same_images(real)
    return real


def _check_same_images(real: References) -> None:
    """Raises UserError if the statistics of two splits come from different folders of images."""
    for feature in {feature for _, feature in real}:
        paths = {ref.facts.get("images_sha256"): ref.path for (_, name), ref in real.items() if name == feature}
        paths.pop(None, None)  # files of other tools have no such hash
        if len(paths) > 1:
            first, second = list(paths.values())[:2]
            raise UserError(
                f"eval.statistics: {first} and {second.name} were made from different images; make all splits "
                f"again with one call of `randcond eval stats --splits`"
            )


def evaluate(model: EvaluatedModel, task: Task, real: References, out: Path) -> None:
    """Draws the images that `out` lacks and scores them. Every rank must call it; rank 0 writes scores.json."""
    check_sizes(model, task, real)
    identity = draw(model, task, out, f"drawing ({model.name})")
    statistics = {f"{split} {feature}": reference.identity for (split, feature), reference in real.items()}
    splits = {split: len(ids) for split, ids in task.prompts.splits.items()}
    scored = {"splits": splits, "splits_sha256": task.prompts.splits_sha256, "statistics": statistics}
    facts = {"protocol": {**identity, **scored}, "metrics": task.ev.metrics}
    path = out / "scores.json"
    known = read_record(path) if path.is_file() else {}
    # An older version computed no intervals.
    complete = "intervals" in known or not any(METRICS[name].has_interval for name in task.ev.metrics)
    if rank() != 0 or (_same_scores(known, facts) and known.get("size") == model.size and complete):
        return
    scores = score(task, real, out)
    write_json(path, {**facts, **scores, "size": model.size})
    said = headline(task.ev.metrics, scores["splits"]) if task.ev.metrics else "drawn; eval.metrics names no score"
    log.info(f"eval: {model.name}: {said}")
    for split, notes in scores["notes"].items():
        for note in notes:
            log.info(f"eval: {model.name}: {split}: {note}")


def _same_scores(stored: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Returns True if stored scores are of the expected protocol and metrics."""
    if stored.get("metrics") != expected["metrics"]:
        return False
    return same_evaluation(stored.get("protocol", {}), expected["protocol"])


def check_sizes(model: EvaluatedModel, task: Task, real: References) -> None:
    """Raises UserError if the scored images and the real images of the statistics differ in size."""
    side = task.protocol.size or task.ev.resolution or own_resolution(model.pipe)
    for reference in real.values():
        if reference.facts.get("size") not in (None, side):
            raise UserError(
                f"eval.statistics: {reference.path}: was made from images of {reference.facts['size']} pixels, but the "
                f"scored images have {side}; make new statistics with `randcond eval stats --size {side}`"
            )


def draw(model: EvaluatedModel, task: Task, out: Path, label: str) -> dict[str, Any]:
    """Draws the images that `out` lacks; returns their identity: the settings that they depend on."""
    task = with_pipeline_defaults(task, model.pipe)
    identity = protocol_facts(model, task)
    generate(task, model.pipe, out, identity, label, model.beat)
    return identity


def with_pipeline_defaults(task: Task, pipe: Any) -> Task:
    """Returns the task with the pipeline's default steps and guidance scale where the protocol sets none."""
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    own = {key: default_setting(pipe, name) for key, name in names.items() if getattr(task.protocol, key) is None}
    return replace(task, protocol=replace(task.protocol, **own))


def protocol_facts(model: EvaluatedModel, task: Task) -> dict[str, Any]:
    """Returns the identity of an evaluation's images and features: the settings that they depend on."""
    ev, protocol, prompts = task.ev, task.protocol, task.prompts
    return {
        "network": model.network,
        "weights": model.weights,
        "protocol": protocol.name,
        "images": protocol.images,
        "sampler": protocol.sampler,
        "steps": protocol.steps,
        "guidance": protocol.guidance,
        "resolution": ev.resolution,
        "prompts_sha256": prompts.sha256,
        "seed": ev.seed,
        "batch": task.batch,
        "dtype": model.dtype,
        "sampler_dtype": sampler_dtype(model.pipe),
        "threads": cpu_threads(),
        "compile": model.compiled,
        "device": device().type,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "pillow")},
        "extractors": {name: extractor.identity for name, extractor in task.extractors.items()},
        **further_settings(ev),
        **task.text_facts,
    }


def score(task: Task, real: References, out: Path) -> dict[str, Any]:
    """Computes the scores of each split from the chunks in `out`, which must be complete.

    Returns {"splits": split -> scores, "intervals": split -> score -> [low, high], "notes": split -> warnings about the
    scores}. The influence of each image on the scores goes to OUT/influence.safetensors, for intervals of differences.
    """
    metrics = find_metrics(task.ev.metrics)
    captions = task.prompts.captions
    splits: dict[str, dict[str, Any]] = {split: {"images": len(ids)} for split, ids in task.prompts.splits.items()}
    notes: dict[str, list[str]] = {}
    influence: dict[str, dict[str, Tensor]] = {split: {} for split in splits}
    # Metrics that need the same features are computed together, so that each feature is loaded once.
    for names in sorted({tuple(sorted(metric.needs)) for metric in metrics.values()}):
        features = {name: load_features(out, len(captions), task.batch, name) for name in names}
        for split, ids in task.prompts.splits.items():
            split_features = {name: values[ids] for name, values in features.items()}
            split_captions = [captions[number] for number in ids]
            for metric in metrics.values():
                if tuple(sorted(metric.needs)) == names:
                    reference = real.get((split, metric.compares)) if metric.compares else None
                    measured = metric.measure(split_features, split_captions, reference)
                    splits[split] |= measured.scores
                    if metric.slow and not task.during_training:
                        splits[split] |= metric.slow(split_features, reference)
                    influence[split] |= measured.influence
    for split, ids in task.prompts.splits.items():
        split_references = {feature: reference for (name, feature), reference in real.items() if name == split}
        if split_notes := warnings(task.ev.metrics, len(ids), split_references):
            notes[split] = split_notes
    save_influence(out, influence)
    found = {split: intervals(splits[split], values) for split, values in influence.items()}
    return {"splits": splits, "intervals": found, "notes": notes}


def headline(metrics: list[str], splits: dict[str, dict[str, Any]]) -> str:
    """Returns one line of text with the main score of each metric, by split."""
    names = [METRICS[name].best for name in metrics]
    return "; ".join(f"{split} {', '.join(f'{n} {v[n]:.4g}' for n in names)}" for split, v in splits.items())
