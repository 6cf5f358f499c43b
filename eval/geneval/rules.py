"""GenEval's rules: whether the objects that a detector found are those that a prompt asks for (arXiv:2310.11513).

In: the objects of an image, the most confident first. Out: correct or not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from randcond.eval.geneval.prompts import Item, Wanted

CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9  # least confidence of an object; for the task "counting"
MOST_OBJECTS = 16  # of a kind
OVERLAP = 0.1  # share of the two objects' sizes that their centres must be apart
LEAST_SHARE = 0.5  # of the distance of two centres that must be along a direction


@dataclass(frozen=True)
class Found:
    """An object that was found in an image."""

    confidence: float
    box: tuple[float, float, float, float]  # left, top, right, bottom, in pixels
    mask: Any = None  # bool [H, W]


# Returns the colours of objects of a kind in an image. The image is the caller's own.
ColoursOf = Callable[[Sequence[Found], str], list[str]]


def is_correct(item: Item, objects: Mapping[str, Sequence[Found]], colours_of: ColoursOf) -> bool:
    """Returns True if an image shows what its prompt asks for. objects: by name, the most confident first."""
    least = COUNTING_CONFIDENCE if item.task == "counting" else CONFIDENCE
    there = {
        name: [each for each in found if each.confidence > least][:MOST_OBJECTS] for name, found in objects.items()
    }
    matched: list[Sequence[Found] | None] = []
    for wanted in item.wanted:
        found = there.get(wanted.name, [])[: wanted.count]
        matched.append(found if _matches(wanted, found, matched, colours_of) else None)
    too_many = any(len(there.get(each.name, [])) >= each.count for each in item.unwanted)
    return None not in matched and not too_many


def _matches(
    wanted: Wanted, found: Sequence[Found], matched: Sequence[Sequence[Found] | None], colours_of: ColoursOf
) -> bool:
    """Returns True if enough objects were found, of the colour and at the place that are asked for."""
    if len(found) < wanted.count:
        return False
    if wanted.colour and colours_of(found, wanted.name).count(wanted.colour) < wanted.count:
        return False
    if wanted.place:
        others = matched[wanted.beside]
        if others is None:
            return False
        return all(wanted.place in places_of(each, other) for each in found for other in others)
    return True


def places_of(one: Found, other: Found) -> set[str]:
    """Returns where an object is, seen from another one: a subset of PLACES.

    The distance of their centres is reduced by a tenth of both sizes; a direction holds if it is more than half of the
    distance.
    """
    boxes = np.array([one.box, other.box]).reshape(2, 2, 2)  # [object, corner, axis]
    centres, sizes = boxes.mean(axis=1), np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centres[0] - centres[1]
    reduced = np.maximum(np.abs(offset) - OVERLAP * sizes.sum(axis=0), 0) * np.sign(offset)
    if (np.abs(reduced) < 1e-3).all():
        return set()
    right, down = reduced / np.linalg.norm(offset)
    found = {
        "left of": right < -LEAST_SHARE,
        "right of": right > LEAST_SHARE,
        "above": down < -LEAST_SHARE,
        "below": down > LEAST_SHARE,
    }
    return {place for place, holds in found.items() if holds}
