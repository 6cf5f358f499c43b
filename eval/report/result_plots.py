"""Pictures of repetitions: each one's score by row, and what the claims' differences are.

In: rows of every repetition, or claims of reports. Out: PNGs. Drawn by matplotlib, no display is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from randcond.eval.report.collect import Row
from randcond.eval.report.repetitions import aligned, asked
from randcond.eval.report.table import COLUMNS
from randcond.launch.runtime.files import atomic_write

DPI = 120
SHARES = "difference, points"
COLOURS = {"reproduced": "#2a7f3f", "within noise": "#888888", "not reproduced": "#b03030"}  # by verdict


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG that appears whole."""
    FigureCanvasAgg(figure)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png")


def plot_repetitions(path: Path, repetitions: dict[str, list[Row]], scores: Sequence[tuple[str, str]]) -> None:
    """A panel per (score, split), a line per row: every repetition's score as a point, their mean as a stroke."""
    rows = aligned(repetitions)
    names = list(rows)
    figure = Figure(figsize=(2.4 + 2.8 * len(scores), 0.9 + 0.32 * len(names)), layout="constrained", dpi=DPI)
    panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for axes, (score, split) in zip(panels, scores, strict=True):
        for place, lines in enumerate(rows.values()):
            values: list[Any] = [row.scores.get(split, {}).get(score) for row in lines]
            if None in values:  # quoted
                continue
            axes.plot(mean(values), place, marker="|", markersize=14, color="black")
            for number, value in enumerate(values):
                axes.plot(value, place, "o", markersize=4, alpha=0.7, color=f"C{number}")
        axes.set(xlabel=f"{COLUMNS[score].label}, {split}", yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="x", alpha=0.3)
        if COLUMNS[score].share:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.set_xlim(-0.03, 1.03)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    dots = [panels[0].plot([], [], "o", color=f"C{number}")[0] for number in range(len(repetitions))]
    figure.legend(dots, repetitions, loc="outside upper right", ncols=len(dots), frameon=False, fontsize=9)
    save(figure, path)


def plot_claims(path: Path, claims: dict[str, Sequence[dict[str, Any]]]) -> None:
    """A line per claim, table by table: the mean difference with its interval, coloured by the verdict.

    `claims`: table -> claims as in report.json. Shares have a panel, every other score one of its own; a claim that
    lets a row do a little worse has a stroke where its limit is.
    """
    found = [(table, claim) for table, each in claims.items() for claim in each]
    kinds = sorted({_scale(claim) for _, claim in found}, key=lambda kind: (kind != SHARES, kind))
    figure = Figure(figsize=(11, 0.8 + 0.27 * len(found)), layout="constrained", dpi=DPI)
    panels = figure.subplots(
        1, len(kinds), squeeze=False, sharey=True, width_ratios=[3 if kind == SHARES else 1 for kind in kinds]
    )[0]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for place, (_, claim) in enumerate(found):
            if _scale(claim) != kind:
                continue
            colour, unit = COLOURS[claim["here"]], 0.01 if kind == SHARES else COLUMNS[claim["score"]].unit
            middle, half = mean(claim["values"]) / unit, claim["interval"] / unit
            axes.errorbar(middle, place, xerr=half, fmt="o", markersize=4, color=colour, capsize=2)
            if claim["margin"]:
                axes.plot(-claim["margin"] / unit, place, marker="|", markersize=10, color="black")
        axes.set_xlabel(kind)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set(yticks=range(len(found)), yticklabels=[f"{asked(claim)}  [{table}]" for table, claim in found])
    panels[0].tick_params(axis="y", labelsize=8)
    panels[0].set_ylim(len(found) - 0.5, -0.5)
    _explain_colours(figure, panels[0])
    save(figure, path)


def plot_effects(
    path: Path, claims: dict[str, Sequence[dict[str, Any]]], repetitions: dict[str, dict[str, Any]]
) -> None:
    """Of unseen digits, the share drawn right by the two rows of each claim: an arrow from the lesser row's mean.

    `claims`: table -> claims as in report.json, `repetitions`: table -> its repetitions as there. Claims of other
    scores or of more than two rows and those that another table has measured (`as`) are left out; nothing is written
    if that leaves none. Every repetition's share is a point: a ring where the claim says less is right, a dot where
    more.
    """
    found = [(table, claim) for table, each in claims.items() for claim in each if _is_effect(claim)]
    if not found:
        return
    figure = Figure(figsize=(11, 0.8 + 0.27 * len(found)), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    for place, (table, claim) in enumerate(found):
        colour = COLOURS[claim["here"]]
        before, after = (
            [each[row]["scores"]["unseen"]["digit_accuracy"] for each in repetitions[table].values()]
            for row in sorted(claim["contrast"], key=lambda row: claim["contrast"][row])
        )
        axes.annotate(
            "",
            (mean(after), place),
            (mean(before), place),
            arrowprops={"arrowstyle": "->", "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0},
        )
        axes.plot(before, [place] * len(before), "o", markersize=4, markerfacecolor="none", color=colour, alpha=0.6)
        axes.plot(after, [place] * len(after), "o", markersize=4, color=colour, alpha=0.6)
    axes.set(yticks=range(len(found)), yticklabels=[f"{asked(claim)}  [{table}]" for table, claim in found])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(found) - 0.5, -0.5), xlabel="unseen digits drawn right")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", alpha=0.3)
    _explain_colours(figure, axes)
    save(figure, path)


def _is_effect(claim: dict[str, Any]) -> bool:
    of_digits = claim["score"] == "digit_accuracy" and claim["split"] == "unseen"
    return of_digits and sorted(claim["contrast"].values()) == [-1, 1] and "as" not in claim


def _explain_colours(figure: Figure, axes: Axes) -> None:
    handles = [axes.plot([], [], "o", color=colour, label=verdict)[0] for verdict, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)


def _scale(claim: dict[str, Any]) -> str:
    column = COLUMNS[claim["score"]]
    return SHARES if column.share else column.label
