"""Intervals cover what they should, and influence values are what a bootstrap of the score itself finds."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from randcond.data.digits.world import read_label
from randcond.eval.evaluate import score
from randcond.eval.images.generate import Task, chunk_paths
from randcond.eval.images.prompts import Prompts
from randcond.eval.scores.bootstrap import Interval, intervals, save_influence
from randcond.eval.scores.influence import _few_images, _many_images, of_frechet, of_inception_score, of_mean
from randcond.eval.scores.metrics import METRICS
from randcond.eval.scores.mmd import Mmd
from randcond.eval.scores.moments import Moments, frechet_distance, frechet_infinity
from randcond.eval.scores.statistics import Reference
from randcond.eval.tables.collect import Row
from randcond.eval.tables.noise import differences_to_best, noise_remarks, unpaired
from randcond.eval.tables.table import COLUMNS, table
from randcond.launch.config.experiments import load_config
from randcond.launch.config.protocols import protocol_of

TRIALS, COVERED = 100, 90


def normal(count: int, width: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    return mean + scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def interval_of(score: float, influence: Tensor) -> Interval:
    return intervals({"score": score}, {"score": influence})["score"]


def standard(width: int) -> Moments:
    """The moments of a standard normal distribution."""
    return Moments(0, np.zeros(width), np.eye(width))


def test_evaluations_during_a_training_do_not_extrapolate(tmp_path: Path) -> None:
    features = normal(200, 24, 1).float()
    save_file({"inception": features}, chunk_paths(tmp_path, 200, 200)[0])
    prompts = Prompts(["a word"] * 200, [""] * 200, {"all": list(range(200))})
    real = {("all", "inception"): Reference(tmp_path / "all.npz", standard(24), {})}
    ev = load_config("demo-with", ["eval.metrics=[fid]", "eval.batch=200"]).eval
    task = Task(prompts, protocol_of(ev), ev, {})
    whole = score(task, real, tmp_path)["splits"]["all"]
    brief = score(replace(task, during_training=True), real, tmp_path)["splits"]["all"]
    assert whole.pop("fid_infinity") == frechet_infinity(features, standard(24)) and whole == brief


def test_intervals_of_means_cover_the_true_mean() -> None:
    covered = 0
    for seed in range(TRIALS):
        values = normal(60, 1, seed)[:, 0].exp()  # skewed; its mean is exp(1/2)
        covered += interval_of(float(values.mean()), of_mean(values)).holds(float(np.exp(0.5)))
    assert COVERED <= covered <= TRIALS


def test_intervals_of_fid_cover_the_true_distance() -> None:
    width, real = 8, standard(8)
    shift, scale = 0.3, 1.2
    true = width * (shift**2 + (scale - 1) ** 2)
    covered = 0
    for seed in range(TRIALS):
        features = normal(2000, width, seed, shift, scale)
        drawn = Moments.of(features)
        covered += interval_of(frechet_distance(drawn, real), of_frechet(features, drawn, real)).holds(true)
    assert COVERED <= covered <= TRIALS


def test_paired_intervals_cover_the_true_difference_and_are_narrower() -> None:
    """Two networks that draw the same captions: what a caption does to both scores cancels."""
    covered = 0
    for seed in range(TRIALS):
        captions = normal(300, 1, seed)[:, 0]
        one, other = (captions + 0.2 * normal(300, 1, 1000 * (seed + 1) + which)[:, 0] for which in (1, 2))
        other = other + 0.05
        difference = float((other - one).mean())
        found = interval_of(difference, of_mean(other) - of_mean(one))
        covered += found.holds(0.05)
        assert found.half < 0.5 * interval_of(float(one.mean()), of_mean(one)).half
    assert COVERED <= covered <= TRIALS


def numerical(score: Callable[[Tensor], float], count: int, image: int, copies: int) -> float:
    """Returns the influence of an image by computing the score with the image taken once more.

    copies: how often each image is taken, so that one more is a small change.
    """
    ids = torch.arange(count).repeat(copies)
    more = torch.cat([ids, torch.tensor([image])])
    return (score(more) - score(ids)) * len(more)


@pytest.mark.parametrize("width", [5, 40])  # 30 images: a covariance of full rank, and a singular one
def test_the_influence_on_fid_is_its_derivative(width: int) -> None:
    features, others = normal(30, width, 0, 0.2), normal(100, width, 1)
    real = Moments.of(others)
    influence = of_frechet(features, Moments.of(features), real)
    assert float(influence.mean()) == pytest.approx(0, abs=1e-9)
    # Moments divide by n - 1; with many copies of each image that is n.
    found = [numerical(lambda ids: frechet_distance(biased(features[ids]), real), 30, image, 200) for image in range(4)]
    own = of_frechet(features, biased(features), real)
    assert torch.allclose(own[:4], torch.tensor(found).double(), rtol=0.02, atol=0.02 * float(own.std()))
    assert torch.allclose(own, influence, rtol=0.1, atol=0.1 * float(own.std()))


def test_few_images_have_the_influence_that_the_eigenvectors_of_all_features_give() -> None:
    features, real = normal(25, 40, 0, 0.2), Moments.of(normal(100, 40, 1))
    drawn = Moments.of(features)
    centred = features - torch.from_numpy(drawn.mean)
    one, other = (_few_images(features, drawn, real), _many_images(drawn, real))
    assert torch.allclose(centred @ one @ one.T, centred @ other @ other.T, rtol=1e-6, atol=1e-8)


def biased(features: Tensor) -> Moments:
    """Moments with a covariance that is divided by n: copies of all images don't change them."""
    moments = Moments.of(features)
    return Moments(moments.count, moments.mean, moments.covariance * (moments.count - 1) / moments.count)


@pytest.mark.heavy
def test_the_influence_on_mmd_is_its_derivative() -> None:
    drawn, real = normal(30, 6, 0, 0.3), normal(50, 6, 1)
    influence = Mmd.of(drawn, real).influence
    found = [numerical(lambda ids: Mmd.of(drawn[ids], real).value, 30, image, 200) for image in range(4)]
    assert torch.allclose(influence[:4], torch.tensor(found, dtype=torch.float64), rtol=0.01, atol=1e-4)


def test_the_interval_of_the_inception_score_is_that_of_repeated_draws() -> None:
    """Drawn again and again, scores vary as much as the interval of one of them says."""
    scores, halves = [], []
    for seed in range(60):
        logits = 2 * normal(1500, 12, seed)
        scores.append(isc_features_to_metric(logits)[KEY_METRIC_ISC_MEAN])
        halves.append(interval_of(scores[-1], of_inception_score(logits)).half)
    assert np.mean(halves) == pytest.approx(1.96 * np.std(scores), rel=0.25)


def test_fid_infinity_is_nearer_to_the_true_distance() -> None:
    width, real = 24, standard(24)
    plain, extrapolated = [], []
    for seed in range(20):
        features = normal(200, width, seed)
        plain.append(frechet_distance(Moments.of(features), real))  # the true distance is 0
        found = frechet_infinity(features, real)
        assert found is not None
        extrapolated.append(found)
    assert abs(np.mean(extrapolated)) < 0.2 * np.mean(plain)
    assert frechet_infinity(normal(48, width, 0), real) is None  # 24 images of 24 features are singular


def test_a_score_without_influence_has_no_interval() -> None:
    assert intervals({"kid": 1.0}, {}) == {}
    assert set(intervals({"kid": 1.0, "clip": 0.5}, {"clip": torch.randn(9)})) == {"clip"}
    assert interval_of(0.5, torch.zeros(1)) == (0.5, 0.5)


def test_resamples_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    influence = normal(30, 1, 0)[:, 0]
    whole = interval_of(0.0, influence)
    assert interval_of(0.0, influence) == whole
    monkeypatch.setattr("randcond.eval.scores.bootstrap._AT_ONCE", 100)
    assert interval_of(0.0, influence).half == pytest.approx(whole.half, rel=0.1)


def row(name: str, folder: Path, clip: Tensor, seed: int = 1) -> Row:
    """A student's row in a report, with the CLIP score of its images [n]."""
    folder.mkdir()
    influence = {"all": {"clip": of_mean(clip)}}
    save_influence(folder, influence)
    scores = {"all": {"images": len(clip), "clip": float(clip.mean())}}
    found: dict[str, dict[str, Any]] = {split: intervals(scores[split], influence[split]) for split in scores}  # type: ignore[arg-type]
    return Row(name, scores, protocol={"seed": seed}, folder=folder, run=folder, intervals=found)


def test_a_report_says_which_differences_are_within_noise(tmp_path: Path) -> None:
    captions = 0.3 + 0.05 * normal(400, 1, 0)[:, 0]
    noise = [0.002 * normal(400, 1, seed)[:, 0] for seed in (1, 2, 3)]
    rows = [
        row("a", tmp_path / "a", captions + noise[0]),
        row("b", tmp_path / "b", captions + noise[1] + 5e-4),  # the best one by too little
        row("c", tmp_path / "c", captions + noise[2] - 1e-3),  # much less than the interval of either
    ]
    found = differences_to_best(rows)
    assert [(each.best, each.other, each.within_noise) for each in found] == [("b", "a", True), ("b", "c", False)]
    assert rows[2].intervals["all"]["clip"][1] > rows[1].intervals["all"]["clip"][0]  # unpaired, they overlap
    assert noise_remarks(found, {}) == [
        "Within noise of the best student (95% intervals, paired by caption): CLIP↑, all: b and a."
    ]
    assert noise_remarks(found[1:], {})[0].startswith("No student is within noise of the best one")
    assert json.loads(json.dumps([each.facts() for each in found]))[1]["within_noise"] is False
    assert differences_to_best([rows[0], replace(rows[1], protocol={"seed": 2})]) == []  # other noise: not paired
    mixed = [rows[0], replace(rows[1], protocol={"seed": 2}), rows[2]]
    assert differences_to_best(mixed)[0].other == "c"  # the others still are
    assert unpaired(rows) == {} and unpaired(mixed) == {"clip": ["b"]}
    assert noise_remarks([], unpaired(mixed)) == [
        "Not compared, because they drew other captions, or with another seed: b (CLIP↑)."
    ]
    assert differences_to_best([replace(each, folder=tmp_path / "gone") for each in rows]) == []  # of an older version


def test_a_cell_has_as_many_digits_as_its_interval_bears(tmp_path: Path) -> None:
    fid, clip, dino, parameters = (COLUMNS[name] for name in ("fid", "clip", "fd_dinov2", "parameters"))
    assert fid.write(13.0512, half=0.31) == "13.05" and fid.write(466.2, half=31.0) == "466"
    assert clip.write(0.301234, half=0.00021) == "0.30123"
    assert dino.write(0.0361) == "0.036" and dino.write(0.0361, half=0.0021) == "0.0361" and dino.write(0) == "0.0"
    assert parameters.write(859.5e6, half=12e6) == "0.860"
    line = table([row("a", tmp_path / "a", 0.3 + 0.01 * normal(400, 1, 0)[:, 0])])[1]
    assert re.fullmatch(r"0\.\d{5} ± 0\.000\d\d", line[-1]), line


def test_the_embedded_worlds_scores_have_intervals(tmp_path: Path) -> None:
    captions = [f"a red {word} on a black background" for word in ("two", "four", "two", "nine", "four")] * 40
    expected = torch.tensor([[c.digit, c.colour, c.background] for c in map(read_label, captions)])
    rows = []
    for name, wrong, mean in (("good", 5, 0.0), ("bad", 60, 50.0)):
        read = expected.clone()
        read[:wrong, 0] = 7
        features = {"judge_read": read.float(), "judge_features": normal(200, 64, 1, mean).float()}
        measured = METRICS["digits"].measure(features, captions, None)
        found = intervals(measured.scores, measured.influence)
        assert found.keys() == {"digit_accuracy", "colour_accuracy", "frechet_judge"} <= measured.scores.keys()
        share = wrong / 200
        assert found["digit_accuracy"].half == pytest.approx(1.96 * (share * (1 - share) / 200) ** 0.5, rel=0.15)
        assert found["colour_accuracy"].half == 0 < found["frechet_judge"].half
        (tmp_path / name).mkdir()
        save_influence(tmp_path / name, {"all": measured.influence})
        row = Row(name, {"all": measured.scores}, protocol={"seed": 1}, folder=tmp_path / name, run=tmp_path / name)
        rows.append(row)
    differences = {each.score: each for each in differences_to_best(rows)}
    assert differences["digit_accuracy"].best == differences["frechet_judge"].best == "good"
    assert not differences["digit_accuracy"].within_noise and differences["colour_accuracy"].within_noise


def test_benchmarks_of_different_sizes_are_not_paired(tmp_path: Path) -> None:
    rows = []
    for name, count in (("a", 100), ("b", 800), ("c", 100)):
        folder = tmp_path / name
        folder.mkdir()
        values = normal(count, 1, count)[:, 0]
        save_influence(folder, {"all": {"geneval2": of_mean(values)}})
        protocol = {"seed": 1, "geneval2": {"prompts_sha256": str(count)}}
        rows.append(
            Row(name, {"all": {"geneval2": float(values.mean())}}, protocol=protocol, folder=folder, run=folder)
        )
    assert [(each.best, each.other) for each in differences_to_best(rows)] in ([("a", "c")], [("c", "a")])
