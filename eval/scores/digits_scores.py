"""Scores of the digits world: shares of correct digits, colours and backgrounds, and a Fréchet distance.

The judge, a small classifier, reads the images. The distance is between the judge's features of the drawn images and
those of held-out handwriting of the same digits. It is not FID: the network is another one, and the images are small.
"""

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor

from randcond.data.digits.judge import Judge
from randcond.data.digits.world import DIGITS, load_glyphs, read_label, sample_images
from randcond.eval.scores.influence import of_frechet, of_mean
from randcond.eval.scores.moments import Moments, frechet_distance
from randcond.model_zoo.sampler import to_bytes

REFERENCE_IMAGES = 2000
JUDGE_FEATURES = 64  # per image


def score_digits(captions: list[str], predicted: Tensor, features: Tensor) -> dict[str, Any]:
    """Scores n images by the judge's predicted classes [n, 3] and features [n, 64].

    The classes are indices of digit, colour and background. Accuracies are shares in [0, 1].
    """
    accuracy = _right(captions, predicted).mean(dim=0)  # [3]
    drawn = Counter(DIGITS[int(digit)] for digit in predicted[:, 0].tolist())
    return {
        "digit_accuracy": accuracy[0].item(),
        "colour_accuracy": accuracy[1].item(),
        "background_accuracy": accuracy[2].item(),
        "frechet_judge": frechet_distance(Moments.of(features), _real_moments(_digits(captions))),
        "digits_drawn": dict(drawn.most_common()),
    }


def digits_influence(captions: list[str], predicted: Tensor, features: Tensor) -> dict[str, Tensor]:
    """Returns score -> the influence of each image on it [n], fp64. The arguments are those of score_digits()."""
    right = _right(captions, predicted)
    return {
        "digit_accuracy": of_mean(right[:, 0]),
        "colour_accuracy": of_mean(right[:, 1]),
        "frechet_judge": of_frechet(features, Moments.of(features), _real_moments(_digits(captions))),
    }


def _right(captions: list[str], predicted: Tensor) -> Tensor:
    """Returns 1 where digit, colour and background are the caption's, else 0: [n, 3], fp64."""
    return (predicted == torch.tensor([[c.digit, c.colour, c.background] for c in map(read_label, captions)])).double()


def _digits(captions: list[str]) -> tuple[int, ...]:
    return tuple(sorted({read_label(caption).digit for caption in captions}))


@cache
def _real_moments(digits: tuple[int, ...]) -> Moments:
    """Moments of the judge's features [2000, 64] of held-out handwriting of these digits."""
    glyphs, labels = load_glyphs("held_out")
    keep = torch.isin(labels, torch.tensor(digits))
    images, _ = sample_images(glyphs[keep], labels[keep], REFERENCE_IMAGES, seed=0)
    return Moments.of(Judge.load().classify(to_bytes(images).float() / 127.5 - 1)[1])
