"""The metrics of `eval.metrics`: the features each one needs, and how it computes its scores.

In: the features of a split, in the order of its captions, and statistics of real images. Out: scores by name.
FID, IS, KID, precision and recall are torch-fidelity's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from randcond.eval.scores.digits_scores import JUDGE_FEATURES, digits_influence, score_digits
from randcond.eval.scores.influence import of_frechet, of_inception_score, of_mean
from randcond.eval.scores.mmd import Mmd
from randcond.eval.scores.moments import Moments, frechet_distance, frechet_infinity
from randcond.eval.scores.statistics import Reference
from randcond.launch.errors import UserError

Features = dict[str, Tensor]
Scores = dict[str, Any]
KID_SUBSET = 1000  # torch-fidelity's default


@dataclass(frozen=True)
class Measured:
    """The scores of a split."""

    scores: Scores
    influence: dict[str, Tensor] = field(default_factory=dict)  # score -> of each image on it [n], fp64: its interval


# (features of a split by name [n, ...], its n captions, statistics of real images) -> scores
Measure = Callable[[Features, list[str], Reference | None], Measured]


@dataclass(frozen=True)
class Metric:
    """One entry of `eval.metrics`."""

    needs: dict[str, str]  # feature -> the extractor that reads it
    measure: Measure
    best: str  # the score that decides which evaluation is the best
    compares: str | None = None  # the feature whose statistics of real images it needs
    samples: bool = False  # it also needs that feature of the single real images
    lower: bool = False  # lower is better
    least: int = 1  # least number of images in a split
    has_interval: bool = False  # an evaluation without an interval of it is scored again
    is_frechet: bool = False  # a Fréchet distance, which needs more images than features
    slow: Callable[[Features, Reference | None], Scores] | None = None  # scores that evaluations in training leave out

    def score(self, features: Features, captions: list[str], real: Reference | None) -> Scores:
        """Returns the scores alone. The arguments are those of `measure`."""
        return self.measure(features, captions, real).scores


def _frechet_of(feature: str, extractor: str, name: str, infinity: str | None = None) -> Metric:
    """Returns the metric whose score `name` is the Fréchet distance of a feature [n, d].

    infinity: name of the distance that is extrapolated to infinitely many images; None: it is not computed.
    """

    def measure(features: Features, captions: list[str], real: Reference | None) -> Measured:
        assert real is not None
        drawn = Moments.of(features[feature])
        value = frechet_distance(drawn, real.moments)
        return Measured({name: value}, {name: of_frechet(features[feature], drawn, real.moments)})

    def extrapolate(features: Features, real: Reference | None) -> Scores:
        assert infinity is not None and real is not None
        value = frechet_infinity(features[feature], real.moments)
        return {} if value is None else {infinity: value}

    return Metric(
        {feature: extractor},
        measure,
        name,
        feature,
        lower=True,
        least=2,
        has_interval=True,
        is_frechet=True,
        slow=extrapolate if infinity else None,
    )


def _is(features: Features, captions: list[str], real: Reference | None) -> Measured:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    result = isc_features_to_metric(features["logits"])  # 10 splits, shuffled with a fixed seed
    scores = {"is": result[KEY_METRIC_ISC_MEAN], "is_std": result[KEY_METRIC_ISC_STD]}
    return Measured(scores, {"is": of_inception_score(features["logits"])})


def _kid(features: Features, captions: list[str], real: Reference | None) -> Measured:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    assert real is not None
    drawn_features, real_features = features["inception"], real.features()
    images = min(len(real_features), len(drawn_features))
    size = min(KID_SUBSET, images)
    result = kid_features_to_metric(drawn_features, real_features, kid_subset_size=size, verbose=False)
    spread = {"kid_std": result[KEY_METRIC_KID_STD]} if size < images else {}  # else all subsets are the same set
    return Measured({"kid": result[KEY_METRIC_KID_MEAN], **spread, "kid_subset": size})


def _precision_recall(features: Features, captions: list[str], real: Reference | None) -> Measured:
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    assert real is not None
    both = features["inception"], real.features()
    size = min(map(len, both))  # equally many of both; the larger set is sampled with a fixed seed
    drawn_features, real_features = (
        values[np.sort(np.random.default_rng(0).permutation(len(values))[:size])] for values in both
    )
    result = prc_features_to_metric(drawn_features, real_features, save_cpu_ram=True, verbose=False)
    scores = {"precision": result[KEY_METRIC_PRECISION], "recall": result[KEY_METRIC_RECALL], "prc_images": size}
    return Measured(scores)


def _mean_of(feature: str) -> Metric:
    """Returns the metric whose score is the mean of a feature [n] of the same name, read by the extractor of that name.

    Higher is better.
    """

    def measure(features: Features, captions: list[str], real: Reference | None) -> Measured:
        values = features[feature].double()
        return Measured({feature: float(np.mean(values.numpy()))}, {feature: of_mean(values)})

    return Metric({feature: feature}, measure, feature, has_interval=True)


def _mmd_of(feature: str, extractor: str, name: str) -> Metric:
    """Returns the metric whose score `name` is the MMD of a feature [n, d]."""

    def measure(features: Features, captions: list[str], real: Reference | None) -> Measured:
        assert real is not None
        found = Mmd.of(features[feature], real.features())
        return Measured({name: found.value}, {name: found.influence})

    return Metric({feature: extractor}, measure, name, compares=feature, samples=True, lower=True, has_interval=True)


def _digits(features: Features, captions: list[str], real: Reference | None) -> Measured:
    read = captions, features["judge_read"], features["judge_features"]
    return Measured(score_digits(*read), digits_influence(*read))


INCEPTION = {"inception": "inception"}
METRICS = {
    "fid": _frechet_of("inception", "inception", "fid", "fid_infinity"),
    "is": Metric({"logits": "inception"}, _is, "is", least=10, has_interval=True),
    "clip": _mean_of("clip"),
    "hps": _mean_of("hps"),
    "pickscore": _mean_of("pickscore"),
    "imagereward": _mean_of("imagereward"),
    "kid": Metric(INCEPTION, _kid, "kid", compares="inception", samples=True, lower=True, least=2),
    "precision-recall": Metric(INCEPTION, _precision_recall, "precision", "inception", samples=True, least=5),
    "fd-dinov2": _frechet_of("dino", "dino", "fd_dinov2"),
    "cmmd": _mmd_of("cmmd", "cmmd-clip", "cmmd"),
    "dino-mmd": _mmd_of("dino", "dino", "dino_mmd"),
    # Without has_interval: its intervals came later, and an older evaluation need not be scored again for them.
    "digits": Metric({"judge_read": "judge", "judge_features": "judge"}, _digits, "digit_accuracy", least=2),
}
LOWER = {"frechet_judge"} | {metric.best for metric in METRICS.values() if metric.lower}  # scores: lower is better


def needed_extractors(metrics: Mapping[str, Metric]) -> set[str]:
    """Returns the names of the extractors that metrics need."""
    return {extractor for metric in metrics.values() for extractor in metric.needs.values()}


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
    frechet = {metric.compares for name in names if (metric := METRICS[name]).is_frechet}
    for feature, reference in real.items():
        if feature not in frechet:
            continue
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
    if "digits" in names and images <= JUDGE_FEATURES:
        notes.append(
            f"{images} images for the judge's {JUDGE_FEATURES} features: the covariance is singular, and its Fréchet "
            f"distance is biased upwards"
        )
    real_images = min((ref.moments.count for ref in real.values() if ref.moments.count), default=images)
    if "kid" in names and min(images, real_images) <= KID_SUBSET:
        notes.append(f"KID has no spread: all its subsets are the same {min(images, real_images)} images")
    if "is" in names and images < 5000:
        notes.append(f"IS over 10 splits of {images // 10} images is biased downwards; it is meant for 50,000 images")
    return notes
