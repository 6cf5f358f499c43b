"""Repetitions of a table: means, spread, and what they say of a claim, against hand-worked cases."""

import math
import shutil
from pathlib import Path

import pytest
from PIL import Image

from randcond.data.files import read_json, write_json
from randcond.eval.collect import Row
from randcond.eval.repetitions import claim_lines, merge, verdicts
from randcond.eval.results import keep, summarize
from randcond.eval.spread import draw_spread
from randcond.eval.table import table
from randcond.launch.config import PACKAGE
from randcond.launch.table import Claim, load_table


def rows(*values: float) -> list[Row]:
    return [
        Row(
            name,
            {"unseen": {"digit_accuracy": value, "images": 10}},
            notes=[f"note of {name}"],
            facts={"seconds": 10.0},
        )
        for name, value in zip(("without", "with"), values, strict=True)
    ]


THREE = {"a": rows(0.10, 0.50), "b": rows(0.20, 0.70), "c": rows(0.30, 0.60)}
HELPS = Claim("it helps", {"with": 1.0, "without": -1.0}, split="unseen")
NEARER = Claim("it harms", {"with": -1.0, "without": 1.0}, split="unseen", margin=0.05)


def test_means_and_standard_deviations() -> None:
    without, with_ = merge(THREE)
    assert without.scores["unseen"]["digit_accuracy"] == pytest.approx(0.2)
    assert without.spread["unseen"]["digit_accuracy"] == pytest.approx(0.1)
    assert with_.scores["unseen"]["digit_accuracy"] == pytest.approx(0.6)
    assert "images" not in with_.spread["unseen"]
    assert with_.notes == ["note of with"]
    lines = table([without, with_])
    assert [line[-1] for line in lines] == ["digit right", "20.0% ± 10.0%", "60.0% ± 10.0%"]


def test_one_repetition_is_itself() -> None:
    alone = rows(0.1, 0.5)
    assert merge({"": alone}) == alone
    with pytest.raises(ValueError, match="one repetition has no spread"):
        verdicts([HELPS], {"": alone})


def test_verdicts_by_students_t() -> None:
    """Differences 0.4, 0.5, 0.3: mean 0.4, deviation 0.1, and t(0.975, 2) = 4.302653 by the printed tables."""
    (found,) = verdicts([HELPS], THREE)
    assert found.values == pytest.approx([0.4, 0.5, 0.3])
    assert found.margin == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert found.said == "reproduced"
    against = Claim("it harms", {"with": -1.0, "without": 1.0}, split="unseen")
    assert verdicts([against], THREE)[0].said == "not reproduced"
    noisy = {"a": rows(0.1, 0.5), "b": rows(0.2, 0.1), "c": rows(0.3, 0.4)}
    assert verdicts([HELPS], noisy)[0].said == "within noise"
    assert claim_lines([found.facts()])[1] == ["it helps", "digit right, unseen", "+40.0% ± 24.8%", "reproduced"]
    same = {"a": rows(0.1, 0.1), "b": rows(0.2, 0.2)}
    assert verdicts([HELPS], same)[0].said == "within noise"  # no difference at all, and no spread of it
    with pytest.raises(ValueError, match=r"row with has no colour_accuracy of unseen"):
        verdicts([Claim("colours", {"with": 1.0}, score="colour_accuracy", split="unseen")], THREE)


def test_reports_are_kept_and_their_claims_stand_on_one_page(tmp_path: Path) -> None:
    found = [verdict.facts() for verdict in verdicts([HELPS, NEARER], THREE)]
    reports, out = tmp_path / "reports", tmp_path / "kept"
    for name, claims in (("mini-table1", found), ("mini-fig3", [])):
        write_json(reports / name / "report.json", {"title": f"title of {name}", "claims": claims})
        (reports / name / "report.html").write_text("")
    assert keep(reports, out) == ["mini-fig3", "mini-table1"]
    assert not list(out.rglob("*.html"))
    draw_spread(reports / "mini-table1/repetitions.png", THREE, [("digit_accuracy", "unseen")])
    keep(reports, out)
    summarize(out)
    write_json(reports / "mini-table2" / "report.json", {"title": "again", "claims": found[:1]})
    (out / "mini-table1/old.png").write_text("of an older report")
    keep(reports, out)
    summarize(out)
    assert not (out / "mini-table1/old.png").exists()
    page = (out / "README.md").read_text()
    assert "| reproduced, as in mini-table1 |" in page
    assert "1 reproduced, 0 within noise, 1 not reproduced, of 2 claims" in page
    assert "[title of mini-fig3](mini-fig3/report.md)\n\n`make mini-fig3`" in page
    assert "| it helps | digit right, unseen | +40.0% ± 24.8% | reproduced |" in page
    for name in ("claims.png", "mini-table1/repetitions.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 400 and len(set(picture.convert("RGB").getdata())) > 20


def test_the_kept_results_are_of_their_reports(tmp_path: Path) -> None:
    """The page in the repository is what its reports say, and these are of tables that there are."""
    kept = PACKAGE / "launch/tables/results"
    copied = shutil.copytree(kept, tmp_path / "results")
    summarize(copied)
    assert (copied / "README.md").read_text() == (kept / "README.md").read_text()
    for path in kept.glob("*/report.json"):
        claims = load_table(path.parent.name).claims
        assert [claim["text"] for claim in read_json(path).get("claims", [])] == [claim.text for claim in claims]
