"""The report as one self-contained HTML page, which loads nothing from other files or servers."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from randcond.eval.report.page_pictures import Comparison, filmstrips
from randcond.eval.report.records import Report
from randcond.eval.tables.collect import Row, curves
from randcond.eval.tables.protocol_words import settings_in_words
from randcond.eval.tables.table import COLUMNS
from randcond.launch.runtime.files import read_record
from randcond.launch.urls import hide_secrets

Line = list[tuple[float, float]]  # (step or hour, value)

matplotlib.rcParams["svg.hashsalt"] = "randcond"  # makes the SVG bytes reproducible


@dataclass(frozen=True)
class PageParts:
    """What the page shows beside the report itself."""

    lines: list[list[str]]  # the table of scores; [] without rows
    further: list[list[list[str]]]  # tables of claims and costs
    remarks: list[str]  # below the tables
    pictures: dict[str, Path]  # title -> PNG file
    notes: list[str]  # small print about scores and protocols
    facts: dict[str, Any]  # report.json
    compared: Comparison | None = None  # images that a slider compares


def render_page(report: Report, parts: PageParts) -> str:
    """Returns the HTML page of a report."""
    loader = PackageLoader("randcond.eval.report", "")
    environment = Environment(loader=loader, autoescape=select_autoescape(["html", "j2"]))
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # rows stay in their order
    films = {} if report.repetitions else filmstrips(report.rows)
    rows = [
        {**vars(row), "protocol": settings_in_words(row.protocol), "config": _config_text(row)} for row in report.rows
    ]
    facts = base64.b64encode(json.dumps(parts.facts).encode()).decode()
    return environment.get_template("page.html.j2").render(
        title=report.title,
        claim=report.claim,
        lines=parts.lines,
        further=parts.further,
        remarks=[line.replace("**", "") for line in parts.remarks],
        pictures=[
            {"title": title, "data": base64.b64encode(path.read_bytes()).decode()}
            for title, path in parts.pictures.items()
        ],
        comparison=parts.compared.data() if parts.compared else None,
        films=films,
        curves=_curves(report.rows, lambda row, line: line),
        timed_curves=_curves(report.rows, _over_hours, "hours"),
        machines=machine_table(report.rows),
        json_url=f"data:application/json;base64,{facts}",
        notes=parts.notes,
        rows=rows,
    )


def _curves(rows: list[Row], place: Callable[[Row, Line], Line], unit: str = "step") -> list[str]:
    """Returns the plots of the losses, and of each score that was computed during training.

    `place`: (row, points by step) -> the points as they are drawn, [] if they can't be. `unit`: of their x axis.
    """
    plots = []
    for name, title in (("loss/total", "loss"), ("grad_norm", "gradient norm")):
        logged = {row.name: line for row in rows if (line := place(row, _logged(row, name)))}
        if logged:
            plots.append(draw_curves(title, logged, True, unit))
    scores: dict[str, dict[str, Line]] = {}
    for row in rows:
        for name in _logged_scores(row):
            weights, split, score = name.removeprefix("eval/").split("/", 2)
            if score in COLUMNS and (line := place(row, _logged(row, name))):
                scores.setdefault(f"{COLUMNS[score].label}, {split}", {})[f"{row.name} ({weights})"] = line
    return plots + [
        draw_curves(f"{score} during training", lines, unit=unit) for score, lines in sorted(scores.items())
    ]


def _logged(row: Row, name: str) -> Line:
    return [(float(step), value) for step, value in curves(row, (name,)).get(name, [])]


def _over_hours(row: Row, line: Line) -> Line:
    """Returns points by their hour of training instead of their step; [] if the run did not log its speed.

    Between two logged steps, the speed is the one that was logged; all hours together are those of the run.
    """
    speeds, seconds = curves(row, ("samples_per_s",)).get("samples_per_s", []), row.facts.get("seconds")
    if not speeds or not seconds or not line:
        return []
    steps, passed, before = [0.0], [0.0], 0
    for step, speed in speeds:
        steps.append(float(step))
        passed.append(passed[-1] + (step - before) / speed)
        before = step
    hours = np.interp([step for step, _ in line], steps, np.array(passed) * seconds / passed[-1] / 3600)
    return [(float(hour), value) for hour, (_, value) in zip(hours, line, strict=True)]


def machine_table(rows: list[Row]) -> list[list[str]]:
    """Returns a header and a line per measured row: where it was trained and drawn, and by which versions."""
    lines = [["", "trained on", "drawn on", "versions"]]
    for row in rows:
        if not row.scores:
            continue
        trained, protocol = row.facts.get("machine") or {}, row.protocol
        where = f"{trained['ranks']} x {trained['device']}" if trained else ""
        drawn = row.cost.get("device") or protocol.get("device", "")
        versions = ", ".join(f"{name} {number}" for name, number in protocol.get("versions", {}).items())
        lines.append([row.name, where, drawn, versions])
    return lines


def _logged_scores(row: Row) -> list[str]:
    """Returns the names of the scores that a run logged: eval/WEIGHTS/SPLIT/SCORE."""
    path = row.run / "best.json" if row.run else None
    return read_record(path, "logged")["logged"] if path and path.is_file() else []


def _config_text(row: Row) -> str:
    path = row.folder / "config.yaml" if row.folder else None
    # An older version wrote whole URLs.
    return hide_secrets(path.read_text(encoding="utf-8")) if path and path.is_file() else ""


def draw_curves(title: str, lines: Mapping[str, Line], log: bool = False, unit: str = "step") -> str:
    """Returns one plot as an SVG element. `lines`: name of a run -> its points; `log`: log scale; `unit`: of x."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for name, line in lines.items():
        steps, values = zip(*line, strict=True)
        label = name.replace("$", r"\$")  # which would begin a formula
        axes.plot(steps, values, label=label, marker="o" if len(line) < 20 else "", markersize=3, linewidth=1.4)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(unit)
    axes.grid(alpha=0.3)
    if log:
        axes.set_yscale("log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.legend(fontsize=9, frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
