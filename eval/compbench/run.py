"""Evaluates one network on T2I-CompBench: draws ten images per prompt and scores them in the same pass (Table D).

Out: OUT/compbench/CATEGORY/chunk-*.safetensors and OUT/compbench/scores.json: a mean per category, and their average.
"""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from randcond.eval.compbench.prompts import CATEGORIES, read_complex_kinds, read_prompts
from randcond.eval.compbench.score import NEEDS, Scorer
from randcond.eval.images.extractor import Extractor, Features
from randcond.eval.images.generate import Draw, Task, load_features
from randcond.eval.images.identity import ABSENT
from randcond.eval.images.prompts import ALL, Prompts
from randcond.launch.config.identity import differences
from randcond.launch.config.sections import Eval
from randcond.launch.runtime.files import read_record, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import device, rank

# Dotted key of scores.json -> the value that counts if an older file lacks the setting.
_ABSENT = {f"protocol.{category}.{key}": value for category in CATEGORIES for key, value in ABSENT.items()}


def compbench_prompts(ev: Eval, category: str) -> Prompts:
    """Returns the prompts of a category, each one repeated `eval.compbench.images` times in a row."""
    assert ev.compbench.lists is not None
    prompts = read_prompts(Path(ev.compbench.lists), category)
    captions = [prompt for prompt in prompts for _ in range(ev.compbench.images)]
    return Prompts(captions, [""] * len(captions), {ALL: list(range(len(captions)))})


def load_scorer(ev: Eval) -> Scorer:
    """Loads the networks that `eval.compbench.categories` need; raises UserError naming a missing one."""
    bench = ev.compbench
    sources = {"blip": bench.blip, "clip": bench.clip, "detector": bench.detector, "spacy": bench.spacy}
    return Scorer.load(bench.categories, **sources, device=device(), batch=bench.batch)


def evaluate_compbench(task: Task, scorer: Scorer, out: Path, name: str, draw: Draw) -> None:
    """Draws and scores what is missing of every category; rank 0 writes the means. Every rank must call it.

    `name`: the model (teacher or student), for progress bars and logs. `draw`: draws the images of a task.
    """
    ev, folder = task.ev, out / "compbench"
    identities = {}
    for category in ev.compbench.categories:
        prompts = compbench_prompts(ev, category)
        extractor = category_extractor(scorer, ev, category, prompts)
        category_task = replace(task, prompts=prompts, extractors={"compbench": extractor}, ev=replace(ev, shown=1))
        # No JPEG and no resize: the benchmark's networks read the images at the size they are drawn at.
        category_task = replace(category_task, protocol=replace(task.protocol, size=None, jpeg=False))
        identities[category] = draw(category_task, folder / category, f"{category} ({name})")
    path = folder / "scores.json"
    facts = {"protocol": identities, "scorers": scorer.facts}
    if rank() != 0 or (path.is_file() and not differences(read_record(path), facts, _ABSENT)):
        return
    means = {}
    for category in ev.compbench.categories:
        count = len(compbench_prompts(ev, category).captions)
        means[category] = load_features(folder / category, count, task.batch, "compbench").double().mean().item()
    scores = dict(means)
    if set(means) == set(CATEGORIES):  # the paper's average is over all six categories
        scores["average"] = sum(means.values()) / len(means)
    write_json(path, {**facts, "scores": scores})
    log.info(f"compbench: {name}: {', '.join(f'{category} {value:.4f}' for category, value in scores.items())}")


def category_extractor(scorer: Scorer, ev: Eval, category: str, prompts: Prompts) -> Extractor:
    """Returns the extractor of a category: feature compbench, the score of each image, float64 [n]."""
    kinds: dict[str, str] = {}
    if category == "complex":
        unique = list(dict.fromkeys(prompts.captions))
        kinds = dict(zip(unique, read_complex_kinds(Path(ev.compbench.lists or ""), unique), strict=True))

    def read(images: Tensor, captions: list[str]) -> Features:
        complex_kinds = [kinds[caption] for caption in captions] if kinds else None
        return {"compbench": scorer.score(category, images, captions, complex_kinds)}

    facts = {name: fact for name, fact in scorer.facts.items() if name.removesuffix("_note") in NEEDS[category]}
    lists = f"; lists {sha256(json.dumps(kinds).encode()).hexdigest()[:16]}" if kinds else ""
    return Extractor("; ".join(f"{name} {fact}" for name, fact in facts.items()) + lists, 0, read)
