"""Evaluates one network on GenEval: draws four images per prompt and looks for what they must show, in the same pass.

Out: OUT/geneval/chunk-*.safetensors, OUT/geneval/scores.json, and the influence of each prompt beside it.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from randcond.eval.geneval.networks import GenEvalNetworks
from randcond.eval.geneval.prompts import TASKS, Item, items_sha256, read_items
from randcond.eval.geneval.rules import is_correct
from randcond.eval.images.benchmark_prompts import as_prompts, benchmark_task
from randcond.eval.images.extractor import Extractor, Features
from randcond.eval.images.generate import Draw, Task, load_features
from randcond.eval.images.identity import ABSENT
from randcond.eval.images.prompts import ALL, Prompts
from randcond.eval.scores.bootstrap import intervals, save_influence
from randcond.launch.config.identity import differences
from randcond.launch.config.sections import Eval
from randcond.launch.runtime.files import read_record, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import rank

FOLDER = "geneval"
_CORRECT = "correct"  # of each image, 0 or 1 [n]
# Dotted key of scores.json -> the value that counts if an older file lacks the setting.
_ABSENT = {f"protocol.{key}": value for key, value in ABSENT.items()}


def geneval_items(ev: Eval) -> list[Item]:
    """Returns the prompts of the benchmark."""
    assert ev.geneval.prompts is not None
    return read_items(Path(ev.geneval.prompts))


def geneval_prompts(ev: Eval) -> Prompts:
    """Returns the captions of a task: each prompt `eval.geneval.images` times in a row."""
    return as_prompts([item.prompt for item in geneval_items(ev) for _ in range(ev.geneval.images)])


def evaluate_geneval(task: Task, networks: GenEvalNetworks, out: Path, name: str, draw: Draw) -> None:
    """Draws and scores what is missing; rank 0 writes the scores. Every rank must call it.

    `name`: the model (teacher or student), for progress bars and logs. `draw`: draws the images of a task.
    """
    ev, folder = task.ev, out / FOLDER
    items, prompts = geneval_items(ev), geneval_prompts(ev)
    task = benchmark_task(task, prompts, FOLDER, _extractor(networks, items))
    facts = {"protocol": draw(task, folder, f"GenEval ({name})"), "scorers": networks.facts}
    path = folder / "scores.json"
    if rank() != 0 or (path.is_file() and not differences(read_record(path), facts, _ABSENT)):
        return
    correct = load_features(folder, len(prompts.captions), task.batch, _CORRECT).double()
    tasks = [item.task for item in items for _ in range(ev.geneval.images)]
    shares, influence = by_task(correct, tasks)
    scores = {"geneval": sum(shares.values()) / len(shares), "geneval_tasks": shares}
    # The images of a prompt are alike: prompts are resampled, not images.
    influence = influence.view(-1, ev.geneval.images).mean(dim=1)
    save_influence(folder, {ALL: {"geneval": influence}})
    found = intervals({"geneval": scores["geneval"]}, {"geneval": influence})  # type: ignore[dict-item]
    write_json(path, {**facts, "scores": scores, "intervals": {ALL: found}})
    log.info(f"GenEval: {name}: {scores['geneval']:.1%}; {', '.join(f'{t} {v:.1%}' for t, v in shares.items())}")


def by_task(correct: Tensor, tasks: list[str]) -> tuple[dict[str, float], Tensor]:
    """Returns the share of correct images of each task, and the influence of each image on the mean of the shares [n].

    correct: of each image, 0 or 1 [n]; tasks: of each image.
    """
    present = [task for task in TASKS if task in tasks]
    shares, influence = {}, torch.zeros(len(tasks), dtype=torch.float64)
    for task in present:
        ids = torch.tensor([number for number, each in enumerate(tasks) if each == task])
        shares[task] = float(correct[ids].mean())
        influence[ids] = (correct[ids] - shares[task]) * len(tasks) / (len(ids) * len(present))
    return shares, influence


def _extractor(networks: GenEvalNetworks, items: list[Item]) -> Extractor:
    by_prompt = {item.prompt: item for item in items}

    def read(images: Tensor, captions: list[str]) -> Features:
        found = zip(images, captions, networks.objects(images), strict=True)
        correct = [
            is_correct(by_prompt[caption], objects, partial(networks.colours, image))
            for image, caption, objects in found
        ]
        return {_CORRECT: torch.tensor(correct).float()}

    identity = "; ".join(f"{name} {fact}" for name, fact in networks.facts.items())
    return Extractor(f"{identity}; prompts {items_sha256(items)}", 0, read)
