"""Prompts of a benchmark that come as JSON Lines, and the task that draws them.

In: a file. Out: records, and a task whose images are scored as they are drawn.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.eval.images.extractor import Extractor
from randcond.eval.images.generate import Task
from randcond.eval.images.prompts import ALL, Prompts
from randcond.launch.errors import UserError

T = TypeVar("T")
_SHOWN = 12  # images that are kept


def read_prompts(path: Path, key: str, benchmark: str, read: Callable[[dict[str, Any]], T]) -> list[T]:
    """Returns the record of each line. `read`: makes a record of a line's data. `key`: names the file, for errors.

    Raises UserError naming the line that is wrong, and MissingInput without a file.
    """
    if not path.is_file():
        raise MissingInput(f"{key}: no {path}{missing_input(str(path))}")
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):  # a prompt may hold other line ends
        if line.strip():
            try:
                found.append(read(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{key}: {path}: line {number}: is no prompt of {benchmark} ({why})") from None
    if not found:
        raise UserError(f"{key}: {path}: has no prompts")
    return found


def as_prompts(captions: list[str]) -> Prompts:
    """Returns captions as the prompts of a task, in one split."""
    return Prompts(captions, [""] * len(captions), {ALL: list(range(len(captions)))})


def benchmark_task(task: Task, prompts: Prompts, name: str, extractor: Extractor) -> Task:
    """Returns the task that draws a benchmark's prompts, without JPEG and resize, and reads them with one extractor."""
    return replace(
        task,
        prompts=prompts,
        extractors={name: extractor},
        ev=replace(task.ev, shown=_SHOWN),
        protocol=replace(task.protocol, size=None, jpeg=False),
    )
