"""The scores by name: which rows of features each needs, what it is compared with, which way is better.

In: rows of a split (in the order of the captions) and the statistics of real images. Out: numbers by name.
FID, IS, KID, precision and recall are torch-fidelity's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from randcond.eval.scores.digits_scores import score_digits
from randcond.eval.scores.moments import Moments, frechet_distance
from randcond.eval.scores.statistics import Reference
from randcond.launch.errors import UserError

Scores = dict[str, Any]
KID_SUBSET = 1000  # torch-fidelity's default


@dataclass(frozen=True)
class Metric:
    """One entry of `eval.metrics`."""

    needs: dict[str, str]  # row -> the extractor that gives it
    score: Callable[[dict[str, Tensor], list[str], Reference | None], Scores]
    best: str  # the score by which evaluations are compared
    compares: str | None = None  # the row whose statistics of real images it needs
    samples: bool = False  # whether it needs their features, too
    lower: bool = False  # whether less of it is better
    least: int = 1  # images of a split


def _fid(rows: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    assert real is not None
    return {"fid": frechet_distance(Moments.of(rows["inception"]), real.moments)}


def _fd_dinov2(rows: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    assert real is not None
    return {"fd_dinov2": frechet_distance(Moments.of(rows["dino"]), real.moments)}


def _is(rows: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    found = isc_features_to_metric(rows["logits"])  # 10 splits, shuffled by a fixed seed
    return {"is": found[KEY_METRIC_ISC_MEAN], "is_std": found[KEY_METRIC_ISC_STD]}


def _kid(rows: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    assert real is not None
    theirs = real.features()
    size = min(KID_SUBSET, len(theirs), len(rows["inception"]))
    found = kid_features_to_metric(rows["inception"], theirs, kid_subset_size=size, verbose=False)
    return {"kid": found[KEY_METRIC_KID_MEAN], "kid_std": found[KEY_METRIC_KID_STD], "kid_subset": size}


def _precision_recall(rows: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    assert real is not None
    both = rows["inception"], real.features()
    size = min(map(len, both))  # as many of each, the larger set's by a fixed seed
    ours, theirs = (each[np.sort(np.random.default_rng(0).permutation(len(each))[:size])] for each in both)
    found = prc_features_to_metric(ours, theirs, save_cpu_ram=True, verbose=False)
    return {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL], "prc_images": size}


def _clip(rows: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    return {"clip": float(np.mean(rows["clip"].double().numpy()))}


def _digits(rows: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    return score_digits(captions, rows["judge_read"], rows["judge_features"])


INCEPTION = {"inception": "inception"}
METRICS = {
    "fid": Metric(INCEPTION, _fid, compares="inception", best="fid", lower=True, least=2),
    "is": Metric({"logits": "inception"}, _is, best="is", least=10),
    "clip": Metric({"clip": "clip"}, _clip, best="clip"),
    "kid": Metric(INCEPTION, _kid, compares="inception", samples=True, best="kid", lower=True, least=2),
    "precision-recall": Metric(
        INCEPTION, _precision_recall, compares="inception", samples=True, best="precision", least=5
    ),
    "fd-dinov2": Metric({"dino": "dino"}, _fd_dinov2, compares="dino", best="fd_dinov2", lower=True, least=2),
    "digits": Metric({"judge_read": "judge", "judge_features": "judge"}, _digits, best="digit_accuracy", least=2),
}


def find_metrics(names: list[str]) -> dict[str, Metric]:
    """The named metrics; raises UserError naming an unknown one."""
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"eval.metrics: unknown {unknown[0]!r}; known: {', '.join(METRICS)}")
    if not names:
        raise UserError(f"eval.metrics: name at least one of {', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}


def warnings(names: list[str], images: int, real: Mapping[str, Reference]) -> list[str]:
    """What must be known of a split's scores to read them right; `real`: row -> statistics they are compared with."""
    notes = []
    for row, reference in real.items():
        if images <= reference.moments.mean.size:
            notes.append(
                f"{images} images for {reference.moments.mean.size} features: the covariance is singular, and the "
                f"Fréchet distance of so few is biased upwards; compare it only with one of the same number of images"
            )
        if row == "inception" and not reference.facts and "fid" in names:
            notes.append(
                f"{reference.path.name} says nothing of how it was made: pytorch-fid and torch-fidelity scale and "
                f"resize images in different ways, which shifts FID; eval.fid says which of them reads the drawn images"
            )
    if "is" in names and images < 5000:
        notes.append(f"IS over 10 splits of {images // 10} images: biased downwards; it is made for 50,000")
    return notes
