"""Evaluates one network on GenEval 2: draws an image per prompt and asks the judge about it in the same pass.

Out: OUT/geneval2/chunk-*.safetensors, OUT/geneval2/scores.json, and the influence of each image beside it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from randcond.eval.geneval2.judge import Judge
from randcond.eval.geneval2.questions import Item, questions_sha256, read_items
from randcond.eval.geneval2.soft_tifa import soft_tifa
from randcond.eval.images.benchmark_prompts import as_prompts, benchmark_task
from randcond.eval.images.extractor import Extractor, Features
from randcond.eval.images.generate import Draw, Task, load_features
from randcond.eval.images.identity import ABSENT
from randcond.eval.images.prompts import ALL, Prompts
from randcond.eval.images.protocol_images import to_picture
from randcond.eval.scores.bootstrap import intervals, save_influence
from randcond.eval.scores.influence import of_mean
from randcond.launch.config.identity import differences
from randcond.launch.config.sections import Eval
from randcond.launch.runtime.files import read_record, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import rank

FOLDER = "geneval2"
# Per image and question [n, most questions]: the probability of the correct answer, and the token that was said.
_ANSWERS, _SAID = "answers", "said"
_NOTHING = -1  # the token of questions that an image does not have
# Dotted key of scores.json -> the value that counts if an older file lacks the setting.
_ABSENT = {f"protocol.{key}": value for key, value in ABSENT.items()}


def geneval2_items(ev: Eval) -> list[Item]:
    """Returns the prompts that are drawn: all, or the first `eval.geneval2.size`."""
    assert ev.geneval2.prompts is not None
    return read_items(Path(ev.geneval2.prompts))[: ev.geneval2.size]


def geneval2_prompts(ev: Eval) -> Prompts:
    """Returns them as the captions of a task."""
    return as_prompts([item.prompt for item in geneval2_items(ev)])


def evaluate_geneval2(task: Task, judge: Judge, out: Path, name: str, draw: Draw) -> None:
    """Draws and judges what is missing; rank 0 writes the scores. Every rank must call it.

    `name`: the model (teacher or student), for progress bars and logs. `draw`: draws the images of a task.
    """
    ev, folder = task.ev, out / FOLDER
    items, prompts = geneval2_items(ev), geneval2_prompts(ev)
    task = benchmark_task(task, prompts, FOLDER, _extractor(judge, items))
    facts: dict[str, Any] = {"protocol": draw(task, folder, f"GenEval 2 ({name})")}
    path = folder / "scores.json"
    if rank() != 0 or (path.is_file() and not differences(read_record(path), facts, _ABSENT)):
        return
    answers, said = (load_features(folder, len(items), task.batch, feature) for feature in (_ANSWERS, _SAID))
    probabilities = [row[: len(item.questions)].tolist() for item, row in zip(items, answers, strict=True)]
    scores, values = soft_tifa(items, probabilities)
    influence = {score: of_mean(each) for score, each in values.items()}
    save_influence(folder, {ALL: influence})
    notes = judge.warnings(said[said != _NOTHING].tolist())
    write_json(path, {**facts, "scores": scores, "intervals": {ALL: intervals(scores, influence)}, "notes": notes})
    log.info(f"GenEval 2: {name}: Soft-TIFA GM {scores['geneval2']:.1%}, AM {scores['geneval2_am']:.1%}")
    for note in notes:
        log.warning(f"GenEval 2: {name}: {note}")


def _extractor(judge: Judge, items: list[Item]) -> Extractor:
    by_prompt = {item.prompt: item for item in items}
    most = max(len(item.questions) for item in items)

    def read(images: Tensor, captions: list[str]) -> Features:
        answers = torch.full((len(images), most), torch.nan, dtype=torch.float64)
        said = torch.full((len(images), most), _NOTHING)
        for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
            picture = to_picture(image)
            for column, question in enumerate(by_prompt[caption].questions):
                answer = judge.ask(picture, question)
                answers[row, column], said[row, column] = answer.probability, answer.token
        return {_ANSWERS: answers, _SAID: said}

    return Extractor(f"{judge.identity}; questions {questions_sha256(items)}", 0, read)
