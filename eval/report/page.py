"""The report as one self-contained HTML page, which loads nothing from other files or servers."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from randcond.eval.report.records import Report
from randcond.eval.tables.collect import Row, curves
from randcond.launch.runtime.files import read_record
from randcond.launch.urls import hide_secrets

Line = list[tuple[int, float]]  # (step, value)

matplotlib.rcParams["svg.hashsalt"] = "randcond"  # makes the SVG bytes reproducible


def render_page(
    report: Report,
    lines: list[list[str]],
    further: list[list[list[str]]],
    remarks: list[str],
    pictures: dict[str, Path],
    notes: list[str],
) -> str:
    """Returns the HTML page of a report.

    `lines`: the table of scores; `further`: tables of claims and costs. `remarks`: a list below the tables.
    `pictures`: title -> PNG file.
    `notes`: small print about scores and protocols.
    """
    loader = PackageLoader("randcond.eval.report", "")
    environment = Environment(loader=loader, autoescape=select_autoescape(["html", "j2"]))
    plots = []
    for name, title, log in (("loss/total", "loss", True), ("grad_norm", "gradient norm", True)):
        logged = {row.name: line for row in report.rows if (line := curves(row, (name,)).get(name))}
        if logged:
            plots.append(draw_curves(title, logged, log))
    plots += _score_curves(report.rows)
    rows = [{**vars(row), "config": _config_text(row)} for row in report.rows]
    return environment.get_template("page.html.j2").render(
        title=report.title,
        claim=report.claim,
        lines=lines,
        further=further,
        remarks=[line.replace("**", "") for line in remarks],
        pictures=[
            {"title": title, "data": base64.b64encode(path.read_bytes()).decode()} for title, path in pictures.items()
        ],
        curves=plots,
        notes=notes,
        rows=rows,
    )


def _score_curves(rows: list[Row]) -> list[str]:
    """Returns one plot for each score that was computed during training."""
    logged: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        names = _logged_scores(row)
        for name, line in curves(row, tuple(names)).items():
            weights, score = name.removeprefix("eval/").split("/", 1)
            logged.setdefault(score, {})[f"{row.name} ({weights})"] = line
    return [draw_curves(f"{score} during training", lines) for score, lines in sorted(logged.items())]


def _logged_scores(row: Row) -> list[str]:
    """Returns the names of the scores that a run logged: eval/WEIGHTS/SPLIT/SCORE."""
    path = row.run / "best.json" if row.run else None
    return read_record(path, "logged")["logged"] if path and path.is_file() else []


def _config_text(row: Row) -> str:
    path = row.folder / "config.yaml" if row.folder else None
    # An older version wrote whole URLs.
    return hide_secrets(path.read_text(encoding="utf-8")) if path and path.is_file() else ""


def draw_curves(title: str, lines: Mapping[str, Line], log: bool = False) -> str:
    """Returns one plot as an SVG element. `lines`: name of a run -> its (step, value) points; `log`: log scale."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for name, line in lines.items():
        steps, values = zip(*line, strict=True)
        axes.plot(steps, values, label=name, marker="o" if len(line) < 20 else "", markersize=3, linewidth=1.4)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
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
