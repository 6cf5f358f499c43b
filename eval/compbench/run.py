"""T2I-CompBench of one network: its prompts drawn and scored in one pass, ten images each (Table D).

Out: OUT/compbench/CATEGORY/chunk-*.safetensors and OUT/compbench/scores.json: a mean per category, and of them all.
"""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from randcond.eval.compbench.prompts import CATEGORIES, read_complex_kinds, read_prompts
from randcond.eval.compbench.score import NEEDS, Scorer
from randcond.eval.images.extractor import Extractor, Rows
from randcond.eval.images.generate import Draw, Task, load_rows
from randcond.eval.images.prompts import ALL, Prompts
from randcond.launch.config.sections import Eval
from randcond.launch.runtime.files import read_json, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import device, rank


def compbench_prompts(ev: Eval, category: str) -> Prompts:
    """A category's captions, each as often as images of it are drawn, side by side."""
    assert ev.compbench.lists is not None
    listed = read_prompts(Path(ev.compbench.lists), category)
    captions = [prompt for prompt in listed for _ in range(ev.compbench.images)]
    return Prompts(captions, [""] * len(captions), {ALL: list(range(len(captions)))})


def load_scorer(ev: Eval) -> Scorer:
    """The networks of the categories asked for; raises UserError naming one that is not there."""
    bench = ev.compbench
    sources = {"blip": bench.blip, "clip": bench.clip, "detector": bench.detector, "spacy": bench.spacy}
    return Scorer.load(bench.categories, **sources, device=device(), batch=bench.batch)


def evaluate_compbench(task: Task, scorer: Scorer, out: Path, who: str, draw: Draw) -> None:
    """Draws and scores what is missing of every category, by `draw`; the first rank writes the means."""
    ev, folder = task.ev, out / "compbench"
    facts = {}
    for category in ev.compbench.categories:
        prompts = compbench_prompts(ev, category)
        extractor = category_extractor(scorer, ev, category, prompts)
        # As drawn: the benchmark's networks see images at their own size.
        mine = replace(task, prompts=prompts, extractors={"compbench": extractor}, ev=replace(ev, shown=1))
        mine = replace(mine, protocol=replace(mine.protocol, size=None, jpeg=False))
        facts[category] = draw(mine, folder / category, f"{category} ({who})")
    path = folder / "scores.json"
    wanted = {"protocol": facts, "scorers": scorer.facts}
    if rank() != 0 or (path.is_file() and wanted.items() <= read_json(path).items()):
        return
    means = {}
    for category in ev.compbench.categories:
        count = len(compbench_prompts(ev, category).captions)
        means[category] = load_rows(folder / category, count, ev.batch, "compbench").double().mean().item()
    scores = dict(means)
    if set(means) == set(CATEGORIES):  # the paper's average is of all
        scores["average"] = sum(means.values()) / len(means)
    write_json(path, {**wanted, "scores": scores})
    log.info(f"compbench: {who}: {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}")


def category_extractor(scorer: Scorer, ev: Eval, category: str, prompts: Prompts) -> Extractor:
    """What reads the category's score of each image: row compbench [n], float64."""
    kinds: dict[str, str] = {}
    if category == "complex":
        different = list(dict.fromkeys(prompts.captions))
        kinds = dict(zip(different, read_complex_kinds(Path(ev.compbench.lists or ""), different), strict=True))

    def read(images: Tensor, captions: list[str]) -> Rows:
        kind = [kinds[caption] for caption in captions] if kinds else None
        return {"compbench": scorer.score(category, images, captions, kind)}

    mine = {name: said for name, said in scorer.facts.items() if name.removesuffix("_note") in NEEDS[category]}
    listed = f"; lists {sha256(json.dumps(kinds).encode()).hexdigest()[:16]}" if kinds else ""
    return Extractor("; ".join(f"{name} {said}" for name, said in mine.items()) + listed, 0, read)
