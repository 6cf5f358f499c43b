"""T2I-CompBench's score of a spatial relation, computed from the boxes of the two objects.

In: a prompt, and for each of its two objects a box with a confidence, or None. Out: a score in [0, 1].
The rules are the published ones, including the surprising ones: see each function.
"""

from typing import NamedTuple

# Pixels. The published boxes belong to an image whose shorter side was resized to this, and so does the distance NEAR.
FRAME = 479
NEAR = 150.0
IOU = 0.1
MIN_SCORE = 0.5  # lower scores count as 0

# A prompt's relation is the first one of this list that the prompt contains, at any position.
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
    """The box of a detected object in pixels from the upper left corner, and its confidence in [0, 1]."""

    confidence: float
    left: float
    top: float
    right: float
    bottom: float


def object_name(noun: str) -> str:
    """Returns the name to give to the detector: "person" for man, woman, boy and girl, else the noun itself."""
    return "person" if noun in PERSONS else noun


def relation(prompt: str) -> str | None:
    """Returns the relation in a prompt, one of RELATIONS, or None if it contains none of them.

    >>> relation("a dog on the left of a cat"), relation("a dog above a cat")
    ('on the left of', None)
    """
    return next((words for words in RELATIONS if words in prompt), None)


def spatial_score(prompt: str, first: Box | None, second: Box | None) -> float:
    """Returns 0.25 * (sum of both confidences) + 0.5 * position_score(), or 0 if that is below 0.5.

    If only one object is found, the score is 0.25 * its confidence. As this is below 0.5, it always counts 0. Two
    objects in a wrong position count 0 too, unless both confidences are 1. Boxes are in pixels of a frame whose shorter
    side is FRAME.
    """
    if first is not None and second is not None:
        position = position_score(relation(prompt), first, second)
        score = 0.25 * (first.confidence + second.confidence) + 0.5 * position
    else:
        score = 0.25 * sum(box.confidence for box in (first, second) if box is not None)
    return score if score >= MIN_SCORE else 0.0


def position_score(words: str | None, first: Box, second: Box) -> float:
    """Returns how well two boxes satisfy a relation of RELATIONS, in [0, 1].

    (dx, dy) is the centre of the second box minus that of the first; y points down.

    Near: 1 if |dx| or |dy| is under 150 pixels, else 150 / max(|dx|, |dy|).
    Four directions: 0 if the second object is on the wrong side, or not nearer to that axis than to the other one. Else
    1 if the IoU of the boxes is under 0.1, else 0.1 / IoU. The first object is on top if dy > 0.
    "on top of" (without "the") is a known relation without a rule: it scores 0, and so does None.
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
    """Returns the intersection area of two boxes divided by the area of their union; 0 if the union has no area."""
    width = max(0.0, min(first.right, second.right) - max(first.left, second.left))
    height = max(0.0, min(first.bottom, second.bottom) - max(first.top, second.top))
    shared = width * height
    covered = sum((box.right - box.left) * (box.bottom - box.top) for box in (first, second)) - shared
    return shared / covered if covered > 0 else 0.0
