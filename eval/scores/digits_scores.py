"""Scores of the digits world: shares of right digits, colours and backgrounds, and a Frechet distance, by the judge.

The distance is taken between the judge's features of the drawn images and of held-out handwriting of the same
digits. It is not FID: another network's features, on small images.
"""

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor

from randcond.data.digits.judge import Judge
from randcond.data.digits.world import DIGITS, load_glyphs, read_label, sample_images
from randcond.eval.scores.moments import Moments, frechet_distance
from randcond.model_zoo.sampler import to_bytes

REFERENCE_IMAGES = 2000


def score_digits(captions: list[str], read: Tensor, features: Tensor) -> dict[str, Any]:
    """Scores of what the judge read [n, 3] and its features [n, 64] for these captions."""
    wanted = torch.tensor([[c.digit, c.colour, c.background] for c in map(read_label, captions)])
    right = (read == wanted).double().mean(dim=0)
    digits = tuple(sorted(set(wanted[:, 0].tolist())))
    drawn = Counter(DIGITS[int(digit)] for digit in read[:, 0].tolist())
    return {
        "digit_accuracy": right[0].item(),
        "colour_accuracy": right[1].item(),
        "background_accuracy": right[2].item(),
        "frechet_judge": frechet_distance(Moments.of(features), _reference(digits)),
        "digits_drawn": dict(drawn.most_common()),
    }


@cache
def _reference(digits: tuple[int, ...]) -> Moments:
    """The judge's features [2000, 64] of held-out handwriting of these digits."""
    glyphs, labels = load_glyphs("held_out")
    keep = torch.isin(labels, torch.tensor(digits))
    images, _ = sample_images(glyphs[keep], labels[keep], REFERENCE_IMAGES, seed=0)
    return Moments.of(Judge.load().classify(to_bytes(images).float() / 127.5 - 1)[1])
