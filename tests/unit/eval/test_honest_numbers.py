"""Numbers say how sure they are: warnings about too few images on either side, and spreads of IS and KID in reports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from randcond.eval.report.records import Report
from randcond.eval.report.report import write_report
from randcond.eval.scores.metrics import METRICS, warnings
from randcond.eval.scores.moments import Moments
from randcond.eval.scores.statistics import Reference, read_statistics, write_statistics
from randcond.eval.tables.collect import Row
from randcond.eval.tables.repetitions import merge
from randcond.eval.tables.table import table

WIDTH = 8


def reference(images: int, width: int = 2048) -> Reference:
    """Statistics of this many real images, of features that the warnings don't look at."""
    return Reference(Path("all.npz"), Moments(images, np.zeros(width), np.eye(width)), {"images": images})


@pytest.mark.parametrize(
    ("drawn", "real", "expected"),
    [
        (30_000, 40_504, []),
        (2_048, 40_504, ["2048 images for 2048 features"]),
        (30_000, 2_048, ["2048 real images for 2048 features (all.npz)"]),
        (30_000, 100, ["100 real images for 2048 features"]),
        (500, 100, ["500 images for 2048 features", "100 real images for 2048 features"]),
        (30_000, 2_049, []),
        (30_000, 0, []),  # statistics of other tools don't say how many images they are of
    ],
)
def test_too_few_images_on_either_side_are_named(drawn: int, real: int, expected: list[str]) -> None:
    notes = warnings(["fid"], drawn, {"inception": reference(real)})
    assert len(notes) == len(expected) and all(text in note for text, note in zip(expected, notes, strict=True))
    assert all("biased upwards" in note for note in notes)


def test_a_few_real_images_are_named_for_each_feature() -> None:
    both = {"inception": reference(1500), "dino": reference(1500, width=1024)}
    assert [note.split(" (")[0] for note in warnings(["fid", "fd-dinov2"], 30_000, both)] == [
        "1500 real images for 2048 features"
    ]


def features_of(folder: Path, images: int) -> Reference:
    generator = torch.Generator().manual_seed(1)
    write_statistics(folder, "all", "inception", torch.randn(images, WIDTH, generator=generator), {"extractor": "x"})
    return read_statistics(str(folder), "all", "inception", {}, WIDTH)


def drawn(images: int) -> dict[str, Tensor]:
    return {"inception": torch.randn(images, WIDTH, generator=torch.Generator().manual_seed(2)) + 0.5}


@pytest.mark.parametrize(
    ("images", "real", "subset", "has_spread"),
    [
        (40, 40, 40, False),
        (40, 60, 40, False),
        (60, 40, 40, False),
        (1000, 1000, 1000, False),
        (1001, 1001, 1000, True),
    ],
)
def test_kid_has_a_spread_only_if_its_subsets_differ(
    images: int, real: int, subset: int, has_spread: bool, tmp_path: Path
) -> None:
    scores = METRICS["kid"].score(drawn(images), [], features_of(tmp_path, real))
    assert scores["kid_subset"] == subset and scores["kid"] > 0
    assert ("kid_std" in scores) is has_spread and scores.get("kid_std", 1.0) > 0
    notes = warnings(["kid"], images, {"inception": reference(real, WIDTH)})
    assert (f"KID has no spread: all its subsets are the same {subset} images" in notes) is not has_spread


def scores_of(**more: Any) -> dict[str, dict[str, Any]]:
    return {"all": {"images": 5000, "fid": 20.0, "is": 30.0, "kid": 0.01, **more}}


def cells(rows: list[Row]) -> dict[str, str]:
    header, *lines = table(rows)
    return dict(zip(header, lines[0], strict=True))


def test_spreads_stand_in_the_table() -> None:
    shown = cells([Row("student", scores_of(is_std=0.456, kid_std=0.0012, kid_subset=1000))])
    assert shown["IS↑"] == "30.00 ± 0.46" and shown["KID↓"] == "0.01000 ± 0.00120" and shown["FID↓"] == "20.00"


@pytest.mark.parametrize(
    ("more", "kid"),
    [
        ({}, "0.01000"),  # without a spread: too few images
        ({"kid_std": 1e-18, "kid_subset": 5000}, "0.01000"),  # older scores: all subsets were the same set
        ({"kid_std": 1e-18, "kid_subset": 400, "images": 400}, "0.01000"),
        ({"kid_std": 0.0012, "kid_subset": 400, "images": 401}, "0.01000 ± 0.00120"),
        ({"kid_std": 0.0012, "kid_subset": 400}, "0.01000 ± 0.00120"),
    ],
)
def test_a_spread_of_equal_subsets_is_not_shown(more: dict[str, Any], kid: str) -> None:
    assert cells([Row("student", scores_of(**more))])["KID↓"] == kid


def test_the_report_says_what_the_spreads_are(tmp_path: Path) -> None:
    rows = [Row("student", scores_of(is_std=0.5, kid_std=0.001, kid_subset=1000))]
    write_report(Report(tmp_path, "title", "claim", rows, {}, []))
    text = (tmp_path / "report.md").read_text()
    assert "30.00 ± 0.50" in text
    assert "± is the standard deviation of IS over its 10 splits, of KID over its 100 subsets of 1000 images." in text
    assert "±" in (tmp_path / "report.html").read_text()
    write_report(Report(tmp_path, "title", "claim", [Row("student", scores_of())], {}, []))
    assert "±" not in (tmp_path / "report.md").read_text()


def test_repetitions_show_their_own_deviation() -> None:
    """A repetition of an older version has a spread of KID that a newer one has not: both are merged."""
    one = Row("student", scores_of(is_std=0.5, kid_std=0.0, kid_subset=1000))
    other = Row("student", {"all": {**scores_of(is_std=0.7, kid_subset=1000)["all"], "is": 32.0, "kid": 0.02}})
    merged = merge({"a": [one], "b": [other]})
    assert cells(merged)["IS↑"] == "31.00 ± 1.41" and cells(merged)["KID↓"] == "0.01500 ± 0.00707"
    assert "kid_std" not in merged[0].scores["all"]
