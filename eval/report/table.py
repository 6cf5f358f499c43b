"""The table of a report: each score of each split beside the paper's figure and the difference.

In: rows. Out: a header and cells, as Markdown, for the console and for the page.
"""

from collections.abc import Sequence
from typing import NamedTuple

from randcond.eval.images.prompts import ALL
from randcond.eval.report.collect import Row


class Column(NamedTuple):
    """How a score is written."""

    label: str
    form: str
    unit: float = 1.0

    @property
    def share(self) -> bool:
        """Whether it is a part of the images: a difference is in points."""
        return self.form.endswith("%")

    def write(self, value: float, sign: str = "") -> str:
        """A score, or with sign "+" a difference, as text."""
        return format(value / self.unit, sign + self.form)

    def difference(self, value: float, sign: str = "") -> str:
        """A difference as text, of shares in points."""
        return self.write(value, sign).rstrip("%")


COLUMNS = {
    "digit_accuracy": Column("digit right", ".1%"),
    "colour_accuracy": Column("colour right", ".1%"),
    "frechet_judge": Column("Fréchet (judge)", ".0f"),
    "fid": Column("FID↓", ".2f"),
    "is": Column("IS↑", ".2f"),
    "clip": Column("CLIP↑", ".4f"),
    "kid": Column("KID↓", ".5f"),
    "precision": Column("precision↑", ".3f"),
    "recall": Column("recall↑", ".3f"),
    "fd_dinov2": Column("FD-DINOv2↓", ".1f"),
    "color": Column("color↑", ".4f"),
    "shape": Column("shape↑", ".4f"),
    "texture": Column("texture↑", ".4f"),
    "spatial": Column("spatial↑", ".4f"),
    "non_spatial": Column("non-spatial↑", ".4f"),
    "complex": Column("complex↑", ".4f"),
    "average": Column("average↑", ".4f"),
    "parameters": Column("parameters, B", ".2f", 1e9),
    "unet": Column("U-Net, M", ".0f", 1e6),
    "macs": Column("MACs, G", ".0f", 1e9),
}
SIZES = ("parameters", "unet", "macs")  # shown where the paper's table has them
OF_PARTS_ONLY = ("digit_accuracy", "colour_accuracy", "frechet_judge")  # mean little over seen and unseen together
FACTS = {"conditioning": "p(t)", "weights": "weights", "steps": "steps", "seconds": "seconds"}


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The header and a line per row; a score has columns for the paper and the difference where the paper gives one."""
    facts = [fact for fact in FACTS if any(row.facts.get(fact) is not None for row in rows)]
    places = _places(rows)
    header = ["", *(FACTS[fact] for fact in facts)]
    for split, score, quoted in places:
        alone = len({each for each, *_ in places}) == 1
        header.append(COLUMNS[score].label + ("" if alone else f", {split}"))
        header += ["paper", "Δ"] if quoted else []
    lines = [header]
    for row in rows:
        line = [row.name, *(_plain(row.facts.get(fact)) for fact in facts)]
        for split, score, quoted in places:
            ours, column = row.scores.get(split, {}).get(score), COLUMNS[score]
            theirs = _figures(row.paper.get(split, {}).get(score))
            spread = row.spread.get(split, {}).get(score)
            around = "" if spread is None else f" ± {column.write(spread)}"
            line.append("" if ours is None else column.write(ours) + around)
            if quoted:
                line.append(" / ".join(map(column.write, theirs)))
                line.append("" if ours is None else " / ".join(column.write(ours - each, "+") for each in theirs))
        lines.append(line)
    return lines


def _places(rows: Sequence[Row]) -> list[tuple[str, str, bool]]:
    """(split, score, whether the paper gives it) of every pair of columns, split by split."""
    splits = list(dict.fromkeys(split for row in rows for split in (*row.scores, *row.paper)))
    splits.sort(key=lambda split: split == ALL)
    found = []
    for split in splits:
        for score in COLUMNS:
            measured = any(score in row.scores.get(split, {}) for row in rows)
            quoted = any(score in row.paper.get(split, {}) for row in rows)
            if split == ALL and len(splits) > 1 and score in OF_PARTS_ONLY:
                continue
            if quoted or (measured and score not in SIZES):
                found.append((split, score, quoted))
    # Digits first for all splits, then colours, as one compares them.
    if all(score in OF_PARTS_ONLY for _, score, _ in found):
        found.sort(key=lambda place: OF_PARTS_ONLY.index(place[1]))
    return found


def _figures(value: object) -> list[float]:
    """The paper's figure, or the two it gives for one configuration."""
    if value is None:
        return []
    return [float(each) for each in value] if isinstance(value, list) else [float(value)]  # type: ignore[arg-type]


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.0f}" if isinstance(value, int | float) else str(value)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """The table as Markdown."""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """The table with its columns aligned, for a console."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
