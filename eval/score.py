"""Scores of judged images: shares of right digits, colours and backgrounds, and a Frechet distance, by split.

The distance is taken between the judge's features of the drawn images and of held-out handwriting of the same
digits. It is not FID: another network's features, on small images.
"""

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from randcond.data.digits.judge import Judge
from randcond.data.digits.world import DIGITS, load_glyphs, read_label, sample_images
from randcond.eval.generate import Prompts, from_bytes, to_bytes

REFERENCE_IMAGES = 2000


def score(prompts: Prompts, read: Tensor, features: Tensor, judge: Judge) -> dict[str, Any]:
    """Scores by split; read [n, 3] and features [n, 64] are the judge's, in the order of the captions."""
    wanted = torch.tensor([[c.digit, c.colour, c.background] for c in map(read_label, prompts.captions)])
    right = (read == wanted).double()
    scores: dict[str, Any] = {}
    for split, ids in prompts.splits.items():
        part = slice(ids.start, ids.stop)
        digits = sorted(set(wanted[part, 0].tolist()))
        drawn = Counter(DIGITS[digit] for digit in read[part, 0].tolist())
        scores[split] = {
            "digit_accuracy": right[part, 0].mean().item(),
            "colour_accuracy": right[part, 1].mean().item(),
            "background_accuracy": right[part, 2].mean().item(),
            "frechet_judge": frechet(features[part], reference_features(judge, digits)),
            "images": len(ids),
            "digits_drawn": dict(drawn.most_common()),
        }
    return scores


def reference_features(judge: Judge, digits: list[int]) -> Tensor:
    """The judge's features [2000, 64] of held-out handwriting of these digits."""
    glyphs, labels = load_glyphs("held_out")
    keep = torch.isin(labels, torch.tensor(digits))
    images, _ = sample_images(glyphs[keep], labels[keep], REFERENCE_IMAGES, seed=0)
    return judge.classify(from_bytes(to_bytes(images)))[1]


def frechet(features: Tensor, reference: Tensor) -> float:
    """Frechet distance of two Gaussians fitted to features [n, d] and [m, d], in float64."""
    statistics = [fid_features_to_statistics(part.double()) for part in (features, reference)]
    return float(np.real(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]))
