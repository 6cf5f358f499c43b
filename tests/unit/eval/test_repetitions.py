"""Repetitions of a table: means, deviations and verdicts, compared with cases worked out by hand."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from randcond.eval.report.miniature_results import keep, summarize
from randcond.eval.report.result_plots import plot_repetitions
from randcond.eval.tables.collect import Row
from randcond.eval.tables.repetitions import Verdict, claim_lines, merge, verdicts
from randcond.eval.tables.table import as_markdown, table
from randcond.launch.config.experiments import to_dict
from randcond.launch.config.paths import PACKAGE
from randcond.launch.config.tables import Claim, leaves, load_runs, load_table
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, write_json


def rows(*values: float) -> list[Row]:
    return [
        Row(
            name,
            {"unseen": {"digit_accuracy": value, "images": 300}},
            notes=[f"note of {name}"],
            facts={"seconds": 10.0},
        )
        for name, value in zip(("without", "with"), values, strict=True)
    ]


THREE = {"a": rows(0.10, 0.50), "b": rows(0.20, 0.70), "c": rows(0.30, 0.60)}
HELPS = Claim("it helps", {"with": 1.0, "without": -1.0}, split="unseen")
NEARER = Claim("it harms", {"with": -1.0, "without": 1.0}, split="unseen", margin=0.05, afterwards=True)


def write_report(path: Path, title: str, claims: list[dict[str, Any]]) -> None:
    """Writes a report whose rows have the scores of THREE, whatever their names are."""
    named = {row: int("without" not in row) for claim in claims for row in claim["contrast"]}
    scores = {
        each: {row: {"scores": lines[place].scores} for row, place in named.items()} for each, lines in THREE.items()
    }
    varied = load_table(path.parent.name).replicates
    write_json(path, {"title": title, "claims": claims, "repetitions": scores, "replicates": varied})


def test_means_and_standard_deviations() -> None:
    without, with_ = merge(THREE)
    assert without.scores["unseen"]["digit_accuracy"] == pytest.approx(0.2)
    assert without.spread["unseen"]["digit_accuracy"] == pytest.approx(0.1)
    assert with_.scores["unseen"]["digit_accuracy"] == pytest.approx(0.6)
    assert "images" not in with_.spread["unseen"]
    assert with_.notes == ["note of with"]
    lines = table([without, with_])
    assert [line[-1] for line in lines] == ["digit right", "20.0% ± 10.0%", "60.0% ± 10.0%"]


def test_rows_are_put_together_by_name(tmp_path: Path) -> None:
    """A row that is not in all repetitions, such as a best step, is left out with a note."""
    (without, with_), (again, still) = rows(0.1, 0.5), rows(0.3, 0.7)
    best = Row("with, best step", {"unseen": {"digit_accuracy": 0.9}})
    other = Row("without, best step", {"unseen": {"digit_accuracy": 0.8}})
    uneven = {"a": [without, with_, best], "b": [again, other, still]}
    merged = merge(uneven)
    assert [(row.name, row.scores["unseen"]["digit_accuracy"]) for row in merged] == [("without", 0.2), ("with", 0.6)]
    assert merged[0].notes[1:] == [
        "left out: with, best step: only in repetition a",
        "left out: without, best step: only in repetition b",
    ]
    plot_repetitions(tmp_path / "spread.png", uneven, [("digit_accuracy", "unseen")])
    assert (tmp_path / "spread.png").stat().st_size > 0


def test_one_repetition_is_itself() -> None:
    alone = [replace(row, intervals={"unseen": {"digit_accuracy": [0.0, 0.6]}}) for row in rows(0.1, 0.5)]
    assert merge({"": alone}) == alone
    assert [line[-1] for line in table(merge({"": alone}))] == ["digit right", "10% ± 30%", "50% ± 30%"]
    assert not any(row.intervals for row in merge({"a": alone, "b": alone}))  # several have a spread
    with pytest.raises(UserError, match="one repetition has no spread"):
        verdicts([HELPS], {"": alone})


def test_verdicts_by_students_t() -> None:
    """The differences 0.4, 0.5, 0.3 have mean 0.4 and deviation 0.1. Printed tables give t(0.975, 2) = 4.302653."""
    (found,) = verdicts([HELPS], THREE)
    assert found.values == pytest.approx([0.4, 0.5, 0.3])
    assert found.interval == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert found.outcome == "reproduced"
    against = Claim("it harms", {"with": -1.0, "without": 1.0}, split="unseen")
    assert verdicts([against], THREE)[0].outcome == "not reproduced"
    noisy = {"a": rows(0.1, 0.5), "b": rows(0.2, 0.1), "c": rows(0.3, 0.4)}
    assert verdicts([HELPS], noisy)[0].outcome == "within noise"
    assert claim_lines([Verdict.read(found.facts())])[1] == [
        "it helps",
        "with - without",
        "digit right, unseen, points",
        "+40.0 ± 24.8",
        "reproduced",
    ]
    same = {"a": rows(0.1, 0.1), "b": rows(0.2, 0.2)}
    assert verdicts([HELPS], same)[0].outcome == "within noise"  # no difference, and no deviation
    with pytest.raises(UserError, match=r"row with has no colour_accuracy of unseen"):
        verdicts([Claim("colours", {"with": 1.0}, score="colour_accuracy", split="unseen")], THREE)


def test_repetitions_that_agree_are_no_sharper_than_their_images() -> None:
    """The interval is at least as wide as 300 images allow, even if the repetitions agree exactly.

    First, one row has one correct image less in each repetition. Then, both rows have all 300 images correct.
    """
    alike = {name: rows(0.99, 0.99 - 1 / 300) for name in "abc"}
    (found,) = verdicts([HELPS], alike)
    shares = [(300 * share + 1) / 302 for share in (0.99, 0.99 - 1 / 300)]
    error = math.sqrt(sum(share * (1 - share) / 300 for share in shares))
    assert found.interval == pytest.approx(1.959964 * error / math.sqrt(3), rel=1e-6)
    assert found.outcome == "within noise"
    (found,) = verdicts([HELPS], {name: rows(1.0, 1.0) for name in "abc"})
    assert 0.004 < found.interval < 0.006  # half a point
    distances = Claim("nearer", {"without": 1.0, "with": -1.0}, score="fid", split="unseen")
    far = {name: [Row("without", {"unseen": {"fid": 20.0}}), Row("with", {"unseen": {"fid": 19.0}})] for name in "ab"}
    assert verdicts([distances], far)[0].interval == 0  # the error of a distance is not known


def test_reports_are_kept_and_their_claims_stand_on_one_page(tmp_path: Path) -> None:
    found = [verdict.facts() for verdict in verdicts([HELPS, NEARER], THREE)]
    rename = {"with": "4 random init", "without": "1 random init, without"}
    again = {**found[0], "contrast": {rename[row]: weight for row, weight in found[0]["contrast"].items()}}
    reports, out = tmp_path / "reports", tmp_path / "kept"
    for name, claims in (("mini-fig2", found), ("mini-fig3", [])):
        write_report(reports / name / "report.json", f"title of {name}", claims)
        (reports / name / "report.html").write_text("")
    assert keep(reports, out) == ["mini-fig2", "mini-fig3"]
    assert not list(out.rglob("*.html"))
    plot_repetitions(reports / "mini-fig2/repetitions.png", THREE, [("digit_accuracy", "unseen")])
    keep(reports, out)
    summarize(out)
    other = {**again, "contrast": {"5 teacher init": 1.0, "2 teacher init, without": -1.0}}  # the same values by chance
    write_report(reports / "mini-table1" / "report.json", "again", [again, other])
    # One report of other digits and seeds, which counts again, and one of the same runs on another machine.
    write_report(reports / "mini-table1-fresh" / "report.json", "others", [again])
    here = {**again, "values": [value + 0.001 for value in again["values"]]}
    here["contrast"] = {"2 exponential": 1.0, "1 without": -1.0}
    write_report(reports / "mini-tableC" / "report.json", "elsewhere", [here])
    (out / "mini-fig2/old.png").write_text("of an older report")
    keep(reports, out)
    summarize(out)
    assert not (out / "mini-fig2/old.png").exists()
    page = (out / "README.md").read_text()
    assert page.count("| reproduced, as in mini-fig2 |") == 1
    assert page.count("| reproduced, as in mini-fig2, run once more |") == 1
    assert "3 reproduced, 0 within noise, 0 not reproduced, of 3 claims asked beforehand. Asked afterwards" in page
    assert "0 reproduced, 0 within noise, 1 not reproduced, of 1 claims." in page
    assert page.count("| it harms (asked afterwards) |") == 1
    assert "1 of them were put to further repetitions, of other digits and seeds, and count there again: 1 came" in page
    assert "[title of mini-fig3](mini-fig3/report.md)\n\n`make mini-fig3`" in page
    assert "| it helps | with - without | digit right, unseen, points | +40.0 ± 24.8 | reproduced |" in page
    for name in ("claims.png", "effects.png", "mini-fig2/repetitions.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 400 and len(set(picture.convert("RGB").getdata())) > 20


def test_kept_pictures_are_small() -> None:
    """They have a palette, and together they are small enough for a clone of the repository."""
    paths = list((PACKAGE / "launch/tables/results").rglob("*.png"))
    for path in paths:
        with Image.open(path) as picture:
            assert picture.mode == "P", path
    assert sum(path.stat().st_size for path in paths) < 4e6


@pytest.mark.heavy
def test_the_kept_results_are_of_their_reports(tmp_path: Path) -> None:
    """The page in the repository matches its reports, and the reports match the current tables."""
    kept = PACKAGE / "launch/tables/results"
    copied = shutil.copytree(kept, tmp_path / "results")
    summarize(copied)
    assert (copied / "README.md").read_text() == (kept / "README.md").read_text()
    for path in kept.glob("*/report.json"):
        name, report = path.parent.name, read_json(path)
        wanted = load_table(name)
        repetitions = {
            replicate: [Row(row, found["scores"]) for row, found in each.items()]
            for replicate, each in report.get("repetitions", {}).items()
        }
        said = json.loads(json.dumps([verdict.facts() for verdict in verdicts(wanted.claims, repetitions)]))
        assert report.get("claims", []) == said, f"{name}: its claims, or the rules for verdicts, have changed since"
        assert (
            not said
            or as_markdown(claim_lines([Verdict.read(facts) for facts in said]))
            in (path.parent / "report.md").read_text()
        )
        assert report.get("replicates", {}) == wanted.replicates
        for experiment, run in next(iter(load_runs(name).values())).items():
            now = leaves(json.loads(json.dumps(to_dict(run.config))))
            then = leaves(report["configurations"][experiment])
            # Keys that are newer than the report are not compared.
            differ = {key for key in now.keys() & then.keys() if now[key] != then[key]}
            assert not differ, f"{name}: {experiment} was run with other values of {sorted(differ)}"
