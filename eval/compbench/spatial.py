"""How T2I-CompBench scores a spatial relation, from the boxes of the two objects: pure arithmetic.

In: a prompt and one box with a confidence for each of its two objects, or None. Out: a score in [0, 1].
The rules are the published ones, with the branches that surprise: see each function.
"""

from typing import NamedTuple

# The published boxes are in pixels of an image whose shorter side was resized to this, so the distance is, too.
FRAME = 479
NEAR = 150.0
IOU = 0.1
FOUND = 0.5  # scores below count 0

# The first of them that a prompt contains is its relation, whatever stands first in the prompt.
RELATIONS = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
PERSONS = {"man", "woman", "boy", "girl"}


class Box(NamedTuple):
    """Where an object was found, in pixels from the upper left corner, and how surely, in [0, 1]."""

    confidence: float
    left: float
    top: float
    right: float
    bottom: float


def object_name(noun: str) -> str:
    """What a detector is asked for: the noun, but a man, woman, boy or girl is a "person"."""
    return "person" if noun in PERSONS else noun


def relation(prompt: str) -> str | None:
    """The relation that a prompt states, one of RELATIONS; None when it contains none of them ("above", "inside")."""
    return next((words for words in RELATIONS if words in prompt), None)


def spatial_score(prompt: str, first: Box | None, second: Box | None) -> float:
    """0.25 (confidences of both) + 0.5 position; one object alone: 0.25 its confidence; below 0.5: 0.

    As 0.25 is below 0.5, one object alone always counts 0, and so do two in a wrong position. Boxes are in a frame
    whose shorter side is FRAME pixels.
    """
    if first is not None and second is not None:
        position = position_score(relation(prompt), first, second)
        score = 0.25 * (first.confidence + second.confidence) + 0.5 * position
    else:
        score = 0.25 * sum(box.confidence for box in (first, second) if box is not None)
    return score if score >= FOUND else 0.0


def position_score(words: str | None, first: Box, second: Box) -> float:
    """How well two boxes stand in a relation of RELATIONS, in [0, 1]; (dx, dy) is second minus first box centre.

    Near: 1 when |dx| or |dy| is under 150 pixels, else 150 / max(|dx|, |dy|). The four directions: 1 under IoU 0.1,
    else 0.1 / IoU, on the right side and nearer to it than to the other axis; y points down, so the first object is
    on top where dy > 0. "on top of" (without "the") is a known relation that has no rule, so it scores 0, like None.
    """
    dx = (second.left + second.right - first.left - first.right) / 2
    dy = (second.top + second.bottom - first.top - first.bottom) / 2
    if words in ("on side of", "next to", "near"):
        return 1.0 if abs(dx) < NEAR or abs(dy) < NEAR else NEAR / max(abs(dx), abs(dy))
    holds = {
        "on the left of": dx > 0 and abs(dx) > abs(dy),
        "on the right of": dx < 0 and abs(dx) > abs(dy),
        "on the top of": dy > 0 and abs(dy) > abs(dx),
        "on the bottom of": dy < 0 and abs(dy) > abs(dx),
    }
    if words is None or not holds.get(words, False):
        return 0.0
    overlap = intersection_over_union(first, second)
    return 1.0 if overlap < IOU else IOU / overlap


def intersection_over_union(first: Box, second: Box) -> float:
    """Area that two boxes share over the area they cover; 0 where they cover none."""
    width = max(0.0, min(first.right, second.right) - max(first.left, second.left))
    height = max(0.0, min(first.bottom, second.bottom) - max(first.top, second.top))
    shared = width * height
    covered = sum((box.right - box.left) * (box.bottom - box.top) for box in (first, second)) - shared
    return shared / covered if covered > 0 else 0.0
