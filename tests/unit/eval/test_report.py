"""Reports: the paper's figures next to ours, differences, notes, and a page that loads nothing."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from randcond.eval.__main__ import evaluate
from randcond.eval.images.prompts import Prompts
from randcond.eval.report.page import PageParts, _over_hours, draw_curves, render_page
from randcond.eval.report.page_pictures import comparison
from randcond.eval.report.records import Report
from randcond.eval.report.report import _notes, load_report, note_lines, write_report
from randcond.eval.report.report_command import report
from randcond.eval.scores.real_images import statistics_of_folder
from randcond.eval.tables.collect import Row, _best, _check_comparable, by_split
from randcond.eval.tables.table import as_markdown, as_text, table
from randcond.launch.config import experiments as configuration
from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Eval
from randcond.launch.config.tables import load_table
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json
from tests.support.demo import TINY
from tests.support.networks import digit_images, inception_weights, save_pictures

TABLE = """
title: A table of two
claim: Said of it.
takes: seconds
report: REPORT
teacher: {paper: {digit_accuracy: 0.9}}
arms:
  ours: {experiment: one, paper: {digit_accuracy: [0.5, 0.75], seen: {digit_accuracy: 0.4}}}
  other: two
  literature: {paper: {all: {digit_accuracy: 0.1}}, note: quoted from somewhere}
"""
SYSTEM = """
base: digits
cache: {{exclude: [three]}}
eval: {{of: [teacher], size: 3, batch: 4, steps: 2, seed: {seed}, cost: false}}
paths: {{reference: {folder}}}
"""


class Loads(HTMLParser):
    """A parser that collects what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") and value:
                self.found += [value] if not value.startswith(("data:", "#")) else []
        if tag in ("link", "iframe", "object"):
            self.found.append(tag)


def loads(page: str) -> list[str]:
    parser = Loads()
    parser.feed(page)
    return parser.found + [part for part in page.split("url(")[1:] if not part.startswith(("#", "data:"))]


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two experiments and a table of both, which replace the shipped ones."""
    experiments = tmp_path / "experiments"
    shutil.copytree(configuration.EXPERIMENTS / "base", experiments / "base")
    for name, seed in (("one", 1), ("two", 2)):
        (experiments / f"{name}.yaml").write_text(SYSTEM.format(seed=seed, folder=tmp_path / name))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "both.yaml").write_text(TABLE.replace("REPORT", str(tmp_path / "report")))
    monkeypatch.setattr(configuration, "EXPERIMENTS", experiments)
    monkeypatch.setattr(configuration, "TABLES", tmp_path / "tables")
    return tmp_path


@pytest.mark.heavy
def test_a_table_with_the_papers_figures(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"no scores at .*one/scores.json: run `randcond run eval one` first"):
        load_report(["both"], [])
    for name in ("one", "two"):
        evaluate(load_config(name))
    report("both")
    ours = json.loads((tables / "one" / "scores.json").read_text())["splits"]
    text = (tables / "report" / "report.md").read_text()
    header, _, first, second, third = [line for line in text.splitlines() if line.startswith("|")]
    assert "digit right, seen | paper | Δ" in header and "digit right, all" not in header
    mine = ours["seen"]["digit_accuracy"]
    assert f"| {mine:.1%}" in first and f" | 40.0% | {mine - 0.4:+.1%} |" in first
    assert second.startswith("| other | raw |") and third.startswith("| literature |")
    assert "**literature**: quoted from somewhere" in text
    assert "**other**: scored with other settings than ours: prompts_sha256, seed" in text
    assert "Protocol of ours" in text and "Protocol of other" in text
    page = (tables / "report" / "report.html").read_text()
    assert loads(page) == [] and page.count("data:image/png;base64,") == 1
    for said in ("How each row was made", "randcond run all one.yaml", "prompts_sha256", "guidance: 3.0"):
        assert said in page
    held = json.loads((tables / "report" / "report.json").read_text())["arms"]
    assert held["ours"]["paper"] == {"seen": {"digit_accuracy": 0.4}, "all": {"digit_accuracy": [0.5, 0.75]}}
    assert "A table of two" in capsys.readouterr().out


@pytest.mark.heavy
def test_experiments_side_by_side(tables: Path) -> None:
    for name in ("one", "two"):
        evaluate(load_config(name))
    with pytest.raises(UserError, match="--out FOLDER"):
        load_report(["one", "two"], [])
    with pytest.raises(UserError, match="both is a table"):
        load_report(["one", "both"], [])
    write_report(load_report(["one", "two"], [], str(tables / "side")))
    assert "| one |" in (tables / "side" / "report.md").read_text()
    for word, said in (
        ("eval.steps=3", "the evaluation of one does not match this experiment: steps is 2 there, 3 here"),
        ("teacher.dtype=bf16", "dtype is 'fp32' there, 'bf16' here"),
        ("eval.resolution=64", "resolution is None there, 64 here"),
        ("eval.metrics=[digits,clip]", r"one/scores\.json: has no scores of clip \(eval\.metrics\)"),
    ):
        with pytest.raises(UserError, match=said):
            load_report(["one"], [word])
    path = tables / "one" / "scores.json"
    scored = json.loads(path.read_text())
    # Weights that were replaced since, or scores by the lists of another experiment with the same images.
    for key in ("network", "splits_sha256"):
        write_json(path, {**scored, "protocol": {**scored["protocol"], key: "another"}})
        with pytest.raises(UserError, match=f"{key} is 'another' there"):
            load_report(["one"], [])


@pytest.mark.heavy
def test_a_report_is_of_the_statistics_and_the_inception_that_are_asked_for(tables: Path) -> None:
    weights = inception_weights(tables / "inception.safetensors", digit_images(8))
    real = save_pictures(tables / "real", digit_images(8))
    for name in ("once", "again"):
        ev = Eval(inception=str(weights), metrics=["fid"])
        statistics_of_folder(real, tables / name, ev, None, None, jpeg=False)
    words = [
        "cache.exclude=[]",
        "eval.metrics=[fid]",
        f"eval.inception={weights}",
        f"eval.statistics={tables / 'once'}",
    ]
    evaluate(load_config("one", words))
    load_report(["one"], words)
    again = np.load(tables / "again" / "all.npz")
    np.savez(tables / "again" / "all.npz", mu=again["mu"] + 1, sigma=again["sigma"])
    with pytest.raises(UserError, match=r"of one \(eval\.statistics\) does not match .*: all inception is"):
        load_report(["one"], [*words, f"eval.statistics={tables / 'again'}"])
    with pytest.raises(UserError, match=r"of one \(eval\.inception, eval\.fid\) does not match .*by pytorch-fid"):
        load_report(["one"], [*words, "eval.fid=pytorch-fid"])
    shutil.rmtree(tables / "once")  # a report can be made on a machine that has only the scores
    load_report(["one"], words)


def test_rows_by_other_compbench_scorers_say_so() -> None:
    rows = [
        Row(name, {"all": {"fid": 1.0}}, protocol={"seed": 1, **scorers})
        for name, scorers in (("a", {"compbench": {"blip": "x"}}), ("b", {"compbench": {"blip": "y"}}), ("c", {}))
    ]
    _check_comparable(rows)
    assert [row.notes for row in rows] == [[], ["scored with other settings than a: compbench"], []]


def test_two_figures_of_one_configuration_are_both_printed() -> None:
    rows = [
        Row("teacher", {"all": {"fid": 13.0, "is": 36.5}}, by_split({"fid": 13.05, "is": 36.76})),
        Row("B-Base", {"all": {"fid": 15.0, "is": 36.0}}, by_split({"fid": [15.76, 14.47], "is": [36.03, 36.5]})),
        Row("quoted", paper=by_split({"fid": 12.0})),
    ]
    lines = table(rows)
    assert lines[0] == ["", "FID↓", "paper", "Δ", "IS↑", "paper", "Δ"]
    assert lines[1] == ["teacher", "13.00", "13.05", "-0.05", "36.50", "36.76", "-0.26"]
    assert lines[2][:4] == ["B-Base", "15.00", "15.76 / 14.47", "-0.76 / +0.53"]
    assert lines[3] == ["quoted", "", "12.00", "", "", "", ""]
    assert as_markdown(lines).splitlines()[1] == "| --- | --- | --- | --- | --- | --- | --- |"
    assert len({len(line) for line in as_text(lines).splitlines()}) == 1


def test_wrong_keys_of_a_table_are_named(tables: Path) -> None:
    path = tables / "tables" / "both.yaml"
    text = path.read_text()
    for wrong, said in (
        (text.replace("claim:", "clam:"), "clam: unknown key; did you mean 'claim'?"),
        (text.replace("note:", "nota:"), "arms.literature.nota: unknown key; did you mean 'note'?"),
        (text.replace("title: A table of two\n", ""), "title: is missing"),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match=said.replace("?", r"\?")):
            load_table("both")


def test_curves_are_the_same_bytes_and_load_nothing() -> None:
    lines = {"one": [(1, 2.0), (2, 1.0)], "two": [(1, 2.5), (2, 1.5)]}
    drawn = draw_curves("loss", lines, log=True)
    assert drawn == draw_curves("loss", lines, log=True)
    assert drawn.startswith("<svg") and loads(drawn) == []


def test_the_best_step_is_a_row_beside_the_last(tmp_path: Path) -> None:
    """The paper's figure stands next to both rows.

    A best step that was scored with other settings gives a note instead of a row.
    """
    config = load_config("demo-with", [*TINY, f"paths.run={tmp_path}", "eval.weights=raw"])
    protocol = {"seed": 1, "prompts_sha256": "same"}
    write_json(tmp_path / "eval-raw/scores.json", {"size": {"unet": 5}})
    watched = tmp_path / "evaluations/step-000004/raw"
    write_json(watched / "scores.json", {"protocol": protocol, "splits": {"all": {"fid": 9.0}}})
    best = {"score": "fid", "value": 9.0, "split": "all", "step": 4, "weights": "raw"}
    write_json(tmp_path / "best.json", best)
    facts = {"steps": 12, "seconds": 60.0}
    paper = {"all": {"fid": 8.0, "color": 0.5}}  # CompBench is not scored during training
    last = Row("arm", {"all": {"fid": 12.0}}, paper, protocol, facts=facts, folder=tmp_path / "eval-raw", run=tmp_path)
    (row,) = _best(last, config)
    assert (row.name, row.facts, row.folder) == ("arm, best step", {"steps": 4, "weights": "raw"}, watched)
    assert (row.scores["all"], row.paper) == ({"fid": 9.0, "unet": 5}, {"all": {"fid": 8.0}})
    assert row.run is None and not last.notes  # the row of the last step shows the curves
    other = replace(last, protocol={**protocol, "prompts_sha256": "others"}, notes=[])
    assert not _best(other, config)
    assert other.notes == ["best fid during training, at step 4 (raw), scored with other settings: 9"]
    (watched / "scores.json").unlink()
    assert not _best(last, config) and "scores.json is missing: 9" in last.notes[0]


def page_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Returns the page of two students with sample grids and logged speeds, and the data of its pictures."""
    rows = []
    for name, speed in (("without", 4.0), ("with, a second one", 8.0)):
        run = folder / name
        (run / "grids").mkdir(parents=True)
        for step in range(1, 21):
            save_pictures(run / "grids", digit_images(1, seed=step))
            (run / "grids" / "00000.png").rename(run / "grids" / f"step-{step:08d}.png")
        lines = [{"step": step, "loss/total": 1 / step, "samples_per_s": speed} for step in (10, 20)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        facts = {"seconds": 7200, "machine": {"device": "a card", "ranks": 8, "versions": {}}}
        protocol = {"versions": {"torch": "2.10"}, "device": "cuda"}
        rows.append(Row(name, {"all": {"clip": 0.3}}, protocol=protocol, facts=facts, folder=run, run=run))
    prompts = Prompts(["<b>one</b>", "two"], ["", ""], {"seen": [0], "unseen": [1]})
    arms = {row.name: dict(enumerate(digit_images(2, side))) for row, side in zip(rows, (32, 512), strict=True)}
    compared = comparison(prompts, {"unseen": [1], "seen": [0]}, arms)
    assert compared is not None
    report = Report(folder, "two students", "a claim", rows, {}, [])
    facts = {"arms": {"without": {"clip": {"all": 0.3}}}}
    page = render_page(report, PageParts(table(rows), [], [], {}, [], facts, compared))
    return page, compared.data()


def test_the_page_compares_images_and_steps_and_holds_its_data(tmp_path: Path) -> None:
    page, compared = page_of(tmp_path)
    assert loads(page) == [] and "<script src" not in page
    assert compared["captions"] == ["two", "<b>one</b>"] and compared["splits"] == ["unseen", "seen"]
    assert list(compared["images"]) == ["without", "with, a second one"]
    assert page.index('"without": [') < page.index('"with, a second one": [')  # in the order of the rows
    small, large = (urls[0] for urls in compared["images"].values())
    assert small.startswith("data:image/png;base64,") and large.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(large.split(",")[1]))) as picture:
        assert picture.size == (320, 320)
    assert "<b>one</b>" not in page  # a caption is text, not HTML
    steps = re.findall(r'"step": (\d+)', page)
    assert steps[:8] == ["1", "4", "6", "9", "12", "15", "17", "20"] and len(steps) == 16
    held = re.search(r'href="data:application/json;base64,([^"]+)"', page)
    assert held and json.loads(base64.b64decode(held[1]))["arms"]["without"]["clip"] == {"all": 0.3}
    assert "8 x a card" in page and "torch 2.10" in page


def test_curves_over_time_end_at_the_hours_of_the_run(tmp_path: Path) -> None:
    page_of(tmp_path)
    row = Row("with", facts={"seconds": 7200}, run=tmp_path / "without")
    assert _over_hours(row, [(10.0, 0.1), (20.0, 0.05)]) == [(1.0, 0.1), (2.0, 0.05)]
    (tmp_path / "without" / "metrics.jsonl").write_text(
        '{"step": 10, "samples_per_s": 2.0}\n{"step": 40, "samples_per_s": 6.0}\n'
    )
    assert _over_hours(row, [(10.0, 0.1), (40.0, 0.2)]) == [
        (1.0, 0.1),
        (2.0, 0.2),
    ]  # as long for 10 slow steps as for 30
    assert _over_hours(replace(row, facts={}), [(10.0, 0.1)]) == []


def test_a_note_of_several_rows_and_splits_stands_once() -> None:
    few, other = "16 images for 64 features: too few", "KID has no spread: one set"
    scores = {"seen": {"images": 16}, "unseen": {"images": 16}}
    rows = [
        Row("one", scores=scores, notes=[f"seen: {few}", f"unseen: {few}", f"seen: {other}"]),
        Row("two", scores=scores, notes=[f"seen: {few}", f"unseen: {few}", "trained without: a shard"]),
    ]
    assert note_lines(rows) == [
        f"**one**, **two**: seen, unseen: {few}",
        f"**one**: seen: {other}",
        "**two**: trained without: a shard",
    ]


def test_a_report_without_a_metric_says_so() -> None:
    drawn = Row("one", scores={"all": {"images": 8}}, protocol={"steps": 25, "statistics": {}, "resolution": None})
    said, protocol = _notes([drawn])
    assert said.startswith("There are no scores, because eval.metrics names none.") and "steps 25." in protocol
    assert not any("no scores" in note for note in _notes([replace(drawn, scores={"all": {"images": 8, "clip": 0.3}})]))
