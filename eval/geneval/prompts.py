"""GenEval's prompts with what their images must show (`randcond fetch geneval`).

In: evaluation_metadata.jsonl. Out: one record per prompt.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from randcond.eval.images.benchmark_prompts import read_prompts

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = ("left of", "right of", "above", "below")
# The 80 classes of COCO in their order, by the names of GenEval's prompts.
# fmt: off
OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on


@dataclass(frozen=True)
class Wanted:
    """Objects of one kind that an image must show."""

    name: str  # one of OBJECTS
    count: int
    colour: str = ""  # one of COLOURS
    place: str = ""  # one of PLACES: where they are, seen from the objects of an earlier entry
    beside: int = 0  # the number of that entry


@dataclass(frozen=True)
class Item:
    """A prompt of the benchmark."""

    prompt: str
    task: str  # one of TASKS
    wanted: tuple[Wanted, ...]
    unwanted: tuple[Wanted, ...] = ()  # so many or more of them are wrong


def read_items(path: Path) -> list[Item]:
    """Reads the benchmark's file. Raises UserError naming the line that is wrong, and MissingInput without a file."""
    return read_prompts(path, "eval.geneval.prompts", "GenEval", _item)


def _item(found: dict[str, Any]) -> Item:
    if found["tag"] not in TASKS:
        raise ValueError(f"unknown tag {found['tag']!r}")
    wanted = tuple(_wanted(each) for each in found["include"])
    if not wanted:
        raise ValueError("it asks for no objects")
    for number, each in enumerate(wanted):
        if each.place and not 0 <= each.beside < number:
            raise ValueError(f"the position of {each.name} refers to no entry before it")
    return Item(str(found["prompt"]), found["tag"], wanted, tuple(_wanted(each) for each in found.get("exclude", [])))


def _wanted(found: dict[str, Any]) -> Wanted:
    place, beside = found.get("position", ("", 0))
    for what, value, known in (
        ("class", found["class"], OBJECTS),
        ("color", found.get("color", ""), ("", *COLOURS)),
        ("position", place, ("", *PLACES)),
    ):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}")
    return Wanted(found["class"], int(found["count"]), found.get("color", ""), place, int(beside))


def items_sha256(items: list[Item]) -> str:
    """Returns a hash of all prompts and what they ask for (16 hex digits)."""
    return hashlib.sha256(repr(items).encode()).hexdigest()[:16]
