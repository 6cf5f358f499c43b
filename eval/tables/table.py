"""The table of a report: each score of each split, next to the paper's figure and the difference.

In: rows. Out: a header and lines of cells, and their text in Markdown and for the console.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from randcond.eval.images.prompts import ALL
from randcond.eval.tables.collect import Row


class Column(NamedTuple):
    """How a score is written."""

    label: str
    form: str  # Python format specification
    unit: float = 1.0  # values are divided by it

    @property
    def share(self) -> bool:
        """True if the score is a share of the images, in [0, 1]. Differences are then in percentage points."""
        return self.form.endswith("%")

    def write(self, value: float, sign: str = "", half: float | None = None) -> str:
        """Formats a score. `sign="+"` always writes the sign, for differences.

        half: half of its interval, of which two digits are significant; None: there is no interval.
        """
        shown, kind = value / self.unit, self.form[-1]
        if half:
            scaled = half / self.unit * (100 if kind == "%" else 1)
            return format(shown, f"{sign}.{max(0, 1 - math.floor(math.log10(scaled)))}{kind}")
        if shown and kind == "f" and not float(format(shown, self.form)):
            return format(shown, f"{sign}.2g")  # rather than 0.0
        return format(shown, sign + self.form)

    def difference(self, value: float, sign: str = "") -> str:
        """Formats a difference; the difference of shares in percentage points, without %."""
        return self.write(value, sign).rstrip("%")


COLUMNS = {
    "digit_accuracy": Column("digit right", ".1%"),
    "colour_accuracy": Column("colour right", ".1%"),
    "frechet_judge": Column("Fréchet (judge)", ".0f"),
    "fid": Column("FID↓", ".2f"),
    "fid_infinity": Column("FID∞↓", ".2f"),
    "is": Column("IS↑", ".2f"),
    "clip": Column("CLIP↑", ".4f"),
    "kid": Column("KID↓", ".5f"),
    "precision": Column("precision↑", ".3f"),
    "recall": Column("recall↑", ".3f"),
    "fd_dinov2": Column("FD-DINOv2↓", ".1f"),
    "cmmd": Column("CMMD↓", ".3f"),
    "dino_mmd": Column("DINO-MMD↓", ".3f"),
    "hps": Column("HPSv2.1↑", ".4f"),
    "pickscore": Column("PickScore↑", ".2f"),
    "imagereward": Column("ImageReward↑", ".3f"),
    "color": Column("color↑", ".4f"),
    "shape": Column("shape↑", ".4f"),
    "texture": Column("texture↑", ".4f"),
    "spatial": Column("spatial↑", ".4f"),
    "non_spatial": Column("non-spatial↑", ".4f"),
    "complex": Column("complex↑", ".4f"),
    "average": Column("average↑", ".4f"),
    "geneval": Column("GenEval↑", ".1%"),
    "geneval2": Column("GenEval 2 (GM)↑", ".1%"),
    "geneval2_am": Column("GenEval 2 (AM)↑", ".1%"),
    "parameters": Column("parameters, B", ".2f", 1e9),
    "unet": Column("denoiser, M", ".0f", 1e6),
    "macs": Column("MACs, G", ".0f", 1e9),
}
SIZES = ("parameters", "unet", "macs")  # shown only if the paper's table has them
SPREADS = {"is": "is_std", "kid": "kid_std"}  # score -> its standard deviation over subsets, shown after ±
# Stored with the scores, but no columns: counts, spreads over subsets, and what the page shows in other ways.
NOT_SHOWN = {
    "images",
    "background_accuracy",
    "digits_drawn",
    "is_std",
    "kid_std",
    "kid_subset",
    "prc_images",
    "geneval_tasks",
    "geneval2_skills",
    "geneval2_atoms",
}
# Shown for seen and unseen captions, but not for "all" next to them: there they mean little.
OF_PARTS_ONLY = ("digit_accuracy", "colour_accuracy", "frechet_judge")
FACTS = {"conditioning": "p(t)", "weights": "weights", "steps": "steps", "seconds": "seconds"}


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns a header and one line of cells per row.

    A score has further columns, for the paper's figure and the difference, if the paper gives the score for any row.
    Raises LookupError if a score has no column: a new metric needs an entry in COLUMNS or in NOT_SHOWN.
    """
    scores = {score for row in rows for split in (*row.scores.values(), *row.paper.values()) for score in split}
    if unknown := sorted(scores - COLUMNS.keys() - NOT_SHOWN):
        raise LookupError(f"no column for the score {unknown[0]}: add it to COLUMNS or NOT_SHOWN in {__name__}")
    facts = [fact for fact in FACTS if any(row.facts.get(fact) is not None for row in rows)]
    columns = _score_columns(rows)
    header = ["", *(FACTS[fact] for fact in facts)]
    one_split = len({split for split, *_ in columns}) == 1
    for split, score, quoted in columns:
        header.append(COLUMNS[score].label + ("" if one_split else f", {split}"))
        header += ["paper", "Δ"] if quoted else []
    lines = [header]
    for row in rows:
        line = [row.name, *(_plain(row.facts.get(fact)) for fact in facts)]
        for split, score, quoted in columns:
            measured, column = row.scores.get(split, {}).get(score), COLUMNS[score]
            figures = _figures(row.paper.get(split, {}).get(score))
            line.append("" if measured is None else _with_spread(row, split, score, measured))
            if quoted:
                line.append(" / ".join(map(column.write, figures)))
                differences = [] if measured is None else [measured - figure for figure in figures]
                line.append(" / ".join(column.write(difference, "+") for difference in differences))
        lines.append(line)
    return lines


def _with_spread(row: Row, split: str, score: str, measured: float) -> str:
    """Returns a score with what follows its ±, if anything does.

    Of repetitions, their standard deviation. Else half of the interval; without one, the deviation over subsets.
    """
    column = COLUMNS[score]
    if row.spread:
        spread = row.spread.get(split, {}).get(score)
    elif (bounds := row.intervals.get(split, {}).get(score)) and bounds[1] > bounds[0]:
        half = (bounds[1] - bounds[0]) / 2
        return f"{column.write(measured, half=half)} ± {column.write(half, half=half)}"
    else:
        spread = spread_over_subsets(row.scores.get(split, {}), score)
    return column.write(measured) + ("" if spread is None else f" ± {column.write(spread)}")


def spread_over_subsets(scores: Mapping[str, Any], score: str) -> float | None:
    """Returns the standard deviation of a score over its subsets, None if it has none.

    `scores`: of a split. Older evaluations stored a spread of KID where every subset was the same set: it is left out.
    """
    if score == "kid" and scores.get("kid_subset", 0) >= scores.get("images", math.inf):
        return None
    return scores.get(SPREADS.get(score, ""))


def _score_columns(rows: Sequence[Row]) -> list[tuple[str, str, bool]]:
    """Returns (split, score, True if the paper gives it) of the columns, split by split."""
    splits = list(dict.fromkeys(split for row in rows for split in (*row.scores, *row.paper)))
    splits.sort(key=lambda split: split == ALL)
    columns = []
    for split in splits:
        for score in COLUMNS:
            measured = any(score in row.scores.get(split, {}) for row in rows)
            quoted = any(score in row.paper.get(split, {}) for row in rows)
            if split == ALL and len(splits) > 1 and score in OF_PARTS_ONLY:
                continue
            if quoted or (measured and score not in SIZES):
                columns.append((split, score, quoted))
    # Puts the splits of one score side by side, because readers compare them.
    order = [*OF_PARTS_ONLY, *(score for score in COLUMNS if score not in OF_PARTS_ONLY)]
    if any(score in OF_PARTS_ONLY for _, score, _ in columns):
        columns.sort(key=lambda column: order.index(column[1]))
    return columns


def _figures(value: object) -> list[float]:
    """Returns the paper's figures for one score. The paper gives two figures for some configurations."""
    if value is None:
        return []
    return [float(figure) for figure in value] if isinstance(value, list) else [float(value)]  # type: ignore[arg-type]


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.0f}" if isinstance(value, int | float) else str(value)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Returns the table as Markdown.

    >>> print(as_markdown([["", "FID"], ["teacher", "13.05"]]))
    |  | FID |
    | --- | --- |
    | teacher | 13.05 |
    """
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Returns the table as text with aligned columns, for the console."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
