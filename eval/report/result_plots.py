"""Plots of repetitions: the scores of each repetition by row, and the differences behind the claims.

In: the rows of every repetition, or the claims of reports. Out: PNG files. They are drawn by matplotlib without a
display.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from randcond.eval.pictures.saving import DPI, save
from randcond.eval.tables.collect import Row
from randcond.eval.tables.repetitions import Verdict, aligned, outcome_in_words
from randcond.eval.tables.table import COLUMNS

SHARES = "difference, points"
COLOURS = {"reproduced": "#2a7f3f", "within noise": "#888888", "not reproduced": "#b03030"}  # by verdict


def plot_repetitions(path: Path, repetitions: dict[str, list[Row]], scores: Sequence[tuple[str, str]]) -> None:
    """Plots one panel per (score, split) with one line per row: a dot for each repetition, a bar for their mean."""
    rows_by_name = aligned(repetitions)
    names = list(rows_by_name)
    figure = Figure(figsize=(2.4 + 2.8 * len(scores), 0.9 + 0.32 * len(names)), layout="constrained", dpi=DPI)
    panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for axes, (score, split) in zip(panels, scores, strict=True):
        for y, rows in enumerate(rows_by_name.values()):
            values: list[Any] = [row.scores.get(split, {}).get(score) for row in rows]
            if None in values:  # a row that is quoted from the literature
                continue
            axes.plot(mean(values), y, marker="|", markersize=14, color="black")
            for number, value in enumerate(values):
                axes.plot(value, y, "o", markersize=4, alpha=0.7, color=f"C{number}")
        axes.set(xlabel=f"{COLUMNS[score].label}, {split}", yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="x", alpha=0.3)
        if COLUMNS[score].share:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.set_xlim(-0.03, 1.03)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    dots = [panels[0].plot([], [], "o", color=f"C{number}")[0] for number in range(len(repetitions))]
    figure.legend(dots, repetitions, loc="outside upper right", ncols=len(dots), frameon=False, fontsize=9)
    save(figure, path)


def plot_claims(path: Path, verdicts: Mapping[str, Sequence[Verdict]]) -> None:
    """Plots one line per claim: the mean difference with its interval, coloured by the verdict.

    `verdicts`: by table. Shares go into one panel, each other score into a panel of its own. A
    bar marks the limit of a claim with a margin ("no worse than").
    """
    lines = [(table, verdict) for table, of_table in verdicts.items() for verdict in of_table]
    scales = sorted({_scale(verdict) for _, verdict in lines}, key=lambda scale: (scale != SHARES, scale))
    figure = Figure(figsize=(11, 0.8 + 0.27 * len(lines)), layout="constrained", dpi=DPI)
    panels = figure.subplots(
        1, len(scales), squeeze=False, sharey=True, width_ratios=[3 if scale == SHARES else 1 for scale in scales]
    )[0]
    for axes, scale in zip(panels, scales, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for y, (_, verdict) in enumerate(lines):
            if _scale(verdict) != scale:
                continue
            claim = verdict.claim
            colour, unit = COLOURS[verdict.outcome], 0.01 if scale == SHARES else COLUMNS[claim.score].unit
            middle, half_width = mean(verdict.values) / unit, verdict.interval / unit
            axes.errorbar(middle, y, xerr=half_width, fmt="o", markersize=4, color=colour, capsize=2)
            if claim.margin:
                axes.plot(-claim.margin / unit, y, marker="|", markersize=10, color="black")
        axes.set_xlabel(scale)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set(yticks=range(len(lines)), yticklabels=[f"{verdict.text}  [{table}]" for table, verdict in lines])
    panels[0].tick_params(axis="y", labelsize=8)
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    _explain_colours(figure, panels[0], lines)
    save(figure, path)


def plot_effects(path: Path, verdicts: Mapping[str, Sequence[Verdict]], repetitions: dict[str, dict[str, Any]]) -> None:
    """Plots the share of correctly drawn unseen digits for the two rows of each claim.

    An arrow leads from the mean of the row that the claim calls worse to the mean of the better one. Each repetition is
    a point: a ring for the worse row, a dot for the better row. `verdicts`: by table.
    `repetitions`: table -> its repetitions as in report.json. Leaves out claims about other scores, claims about more
    than two rows, and claims that another table has measured already. Writes nothing if no claim remains.
    """
    lines = [(table, verdict) for table, of_table in verdicts.items() for verdict in of_table if _is_effect(verdict)]
    if not lines:
        return
    figure = Figure(figsize=(11, 0.8 + 0.27 * len(lines)), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    for y, (table, verdict) in enumerate(lines):
        colour, contrast = COLOURS[verdict.outcome], verdict.claim.contrast
        worse, better = (
            [rows[row]["scores"]["unseen"]["digit_accuracy"] for rows in repetitions[table].values()]
            for row in sorted(contrast, key=contrast.__getitem__)
        )
        axes.annotate(
            "",
            (mean(better), y),
            (mean(worse), y),
            arrowprops={"arrowstyle": "->", "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0},
        )
        axes.plot(worse, [y] * len(worse), "o", markersize=4, markerfacecolor="none", color=colour, alpha=0.6)
        axes.plot(better, [y] * len(better), "o", markersize=4, color=colour, alpha=0.6)
    axes.set(yticks=range(len(lines)), yticklabels=[f"{verdict.text}  [{table}]" for table, verdict in lines])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(lines) - 0.5, -0.5), xlabel="unseen digits drawn right")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", alpha=0.3)
    _explain_colours(figure, axes, lines)
    save(figure, path)


def _is_effect(verdict: Verdict) -> bool:
    claim = verdict.claim
    about_digits = claim.score == "digit_accuracy" and claim.split == "unseen"
    return about_digits and sorted(claim.contrast.values()) == [-1, 1] and not verdict.same_as


def _explain_colours(figure: Figure, axes: Axes, lines: Sequence[tuple[str, Verdict]]) -> None:
    ours = all(verdict.claim.ours for _, verdict in lines)
    words = {outcome_in_words(outcome, ours): colour for outcome, colour in COLOURS.items()}
    handles = [axes.plot([], [], "o", color=colour, label=word)[0] for word, colour in words.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)


def _scale(verdict: Verdict) -> str:
    column = COLUMNS[verdict.claim.score]
    return SHARES if column.share else column.label
