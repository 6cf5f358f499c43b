"""Curves of a report: what runs logged, as SVG that a page holds within itself."""

import io
from collections.abc import Mapping

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

Line = list[tuple[int, float]]  # (step, value)

matplotlib.rcParams["svg.hashsalt"] = "randcond"  # the same curves give the same bytes


def draw_curves(title: str, lines: Mapping[str, Line], log: bool = False) -> str:
    """An SVG element of one plot: a named line per run."""
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
        for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatted(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.legend(fontsize=9, frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
