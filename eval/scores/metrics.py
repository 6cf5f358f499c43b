"""The metrics of `eval.metrics`: the features each one needs, and how it computes its scores.

In: the features of a split, in the order of its captions, and statistics of real images. Out: scores by name.
FID, IS, KID, precision and recall are torch-fidelity's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from randcond.eval.scores.digits_scores import score_digits
from randcond.eval.scores.mmd import mmd
from randcond.eval.scores.moments import Moments, frechet_distance
from randcond.eval.scores.statistics import Reference
from randcond.launch.errors import UserError

Scores = dict[str, Any]
# (features of a split by name [n, ...], its n captions, statistics of real images) -> scores
ScoreOf = Callable[[dict[str, Tensor], list[str], Reference | None], Scores]
KID_SUBSET = 1000  # torch-fidelity's default


@dataclass(frozen=True)
class Metric:
    """One entry of `eval.metrics`."""

    needs: dict[str, str]  # feature -> the extractor that reads it
    score: ScoreOf
    best: str  # the score that decides which evaluation is the best
    compares: str | None = None  # the feature whose statistics of real images it needs
    samples: bool = False  # it also needs that feature of the single real images
    lower: bool = False  # lower is better
    least: int = 1  # least number of images in a split


def _fid(features: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    assert real is not None
    return {"fid": frechet_distance(Moments.of(features["inception"]), real.moments)}


def _fd_dinov2(features: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    assert real is not None
    return {"fd_dinov2": frechet_distance(Moments.of(features["dino"]), real.moments)}


def _is(features: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    result = isc_features_to_metric(features["logits"])  # 10 splits, shuffled with a fixed seed
    return {"is": result[KEY_METRIC_ISC_MEAN], "is_std": result[KEY_METRIC_ISC_STD]}


def _kid(features: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    assert real is not None
    drawn_features, real_features = features["inception"], real.features()
    images = min(len(real_features), len(drawn_features))
    size = min(KID_SUBSET, images)
    result = kid_features_to_metric(drawn_features, real_features, kid_subset_size=size, verbose=False)
    spread = {"kid_std": result[KEY_METRIC_KID_STD]} if size < images else {}  # else all subsets are the same set
    return {"kid": result[KEY_METRIC_KID_MEAN], **spread, "kid_subset": size}


def _precision_recall(features: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    assert real is not None
    both = features["inception"], real.features()
    size = min(map(len, both))  # equally many of both; the larger set is sampled with a fixed seed
    drawn_features, real_features = (
        values[np.sort(np.random.default_rng(0).permutation(len(values))[:size])] for values in both
    )
    result = prc_features_to_metric(drawn_features, real_features, save_cpu_ram=True, verbose=False)
    return {"precision": result[KEY_METRIC_PRECISION], "recall": result[KEY_METRIC_RECALL], "prc_images": size}


def _mean_of(feature: str) -> ScoreOf:
    """Returns the mean of a feature [n] over the images as a score of the same name."""
    return lambda features, captions, real: {feature: float(np.mean(features[feature].double().numpy()))}


def _mmd_of(feature: str, name: str) -> ScoreOf:
    """Returns the MMD of a feature [n, d] as a score."""

    def score(features: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
        assert real is not None
        return {name: mmd(features[feature], real.features())}

    return score


def _digits(features: dict[str, Tensor], captions: list[str], real: Reference | None) -> Scores:
    return score_digits(captions, features["judge_read"], features["judge_features"])


INCEPTION = {"inception": "inception"}
METRICS = {
    "fid": Metric(INCEPTION, _fid, compares="inception", best="fid", lower=True, least=2),
    "is": Metric({"logits": "inception"}, _is, best="is", least=10),
    "clip": Metric({"clip": "clip"}, _mean_of("clip"), best="clip"),
    "hps": Metric({"hps": "hps"}, _mean_of("hps"), best="hps"),
    "pickscore": Metric({"pickscore": "pickscore"}, _mean_of("pickscore"), best="pickscore"),
    "imagereward": Metric({"imagereward": "imagereward"}, _mean_of("imagereward"), best="imagereward"),
    "kid": Metric(INCEPTION, _kid, compares="inception", samples=True, best="kid", lower=True, least=2),
    "precision-recall": Metric(
        INCEPTION, _precision_recall, compares="inception", samples=True, best="precision", least=5
    ),
    "fd-dinov2": Metric({"dino": "dino"}, _fd_dinov2, compares="dino", best="fd_dinov2", lower=True, least=2),
    "cmmd": Metric(
        {"cmmd": "cmmd-clip"}, _mmd_of("cmmd", "cmmd"), compares="cmmd", samples=True, best="cmmd", lower=True
    ),
    "dino-mmd": Metric(
        {"dino": "dino"}, _mmd_of("dino", "dino_mmd"), compares="dino", samples=True, best="dino_mmd", lower=True
    ),
    "digits": Metric({"judge_read": "judge", "judge_features": "judge"}, _digits, best="digit_accuracy", least=2),
}


def find_metrics(names: list[str]) -> dict[str, Metric]:
    """Returns the named metrics; none for pictures without scores. Raises UserError naming an unknown one."""
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"eval.metrics: unknown {unknown[0]!r}; known: {', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}


def warnings(names: list[str], images: int, real: Mapping[str, Reference]) -> list[str]:
    """Returns warnings about the scores of a split that has `images` images.

    `names`: the metrics; `real`: feature -> the statistics of real images that the split is compared with.
    """
    notes = []
    for feature, reference in real.items():
        if images <= reference.moments.mean.size:
            notes.append(
                f"{images} images for {reference.moments.mean.size} features: the covariance is singular, and the "
                f"Fréchet distance is biased upwards; compare it only with distances of the same number of images"
            )
        if 0 < reference.moments.count <= reference.moments.mean.size:  # 0: the file does not say
            notes.append(
                f"{reference.moments.count} real images for {reference.moments.mean.size} features "
                f"({reference.path.name}): their covariance is singular, and the Fréchet distance is biased upwards; "
                f"make the statistics of more images, or compare it only with distances to the same file"
            )
        if feature == "inception" and not reference.facts and "fid" in names:
            notes.append(
                f"{reference.path.name} does not say how it was made: pytorch-fid and torch-fidelity scale and resize "
                f"images in different ways, which shifts FID; set eval.fid to the tool that made the file"
            )
    real_images = min((ref.moments.count for ref in real.values() if ref.moments.count), default=images)
    if "kid" in names and min(images, real_images) <= KID_SUBSET:
        notes.append(f"KID has no spread: all its subsets are the same {min(images, real_images)} images")
    if "is" in names and images < 5000:
        notes.append(f"IS over 10 splits of {images // 10} images is biased downwards; it is meant for 50,000 images")
    return notes
