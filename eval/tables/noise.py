"""Which differences between the rows of a report are within noise, by the influence of each image on the scores.

In: rows that drew the same captions. Out: for each score of a split, the difference of every student to the best one,
with its interval, paired by caption.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from randcond.eval.scores.bootstrap import CONFIDENCE, Interval, intervals, load_influence
from randcond.eval.scores.metrics import LOWER
from randcond.eval.tables.collect import Row
from randcond.eval.tables.table import COLUMNS

SAME = ("prompts_sha256", "splits_sha256", "seed")  # settings that rows must share to be paired


@dataclass(frozen=True)
class Difference:
    """The difference of a row's score to the best row's."""

    split: str
    score: str
    best: str  # name of the row
    other: str
    value: float  # other - best
    interval: Interval

    @property
    def within_noise(self) -> bool:
        """True if the two rows may be equally good."""
        return self.interval.holds(0.0)

    def facts(self) -> dict[str, Any]:
        """Returns plain data for report.json."""
        return {**vars(self), "interval": list(self.interval), "within_noise": self.within_noise}


def differences_to_best(rows: Sequence[Row]) -> list[Difference]:
    """Returns the differences to the best student of each score that has influence values, split by split.

    Rows that can't be paired are left out, see unpaired().
    """
    found = []
    for group in _groups(rows):
        split, score = group.split, group.score
        values = {name: row.scores[split][score] for name, (row, _) in group.paired.items()}
        if len(values) < 2:
            continue
        best = (min if score in LOWER else max)(values, key=lambda name: values[name])
        for name in values.keys() - {best}:
            pair = group.paired[name][1], group.paired[best][1]
            found.append(_difference(split, score, best, name, values[name] - values[best], *pair))
    order = {row.name: place for place, row in enumerate(rows)}
    return sorted(found, key=lambda each: (each.split, list(COLUMNS).index(each.score), order[each.other]))


def unpaired(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Returns score -> the students that have it, but drew other images for it than the first student of the report.

    Other images: of other captions, another seed or other questions of a benchmark. {} if all can be compared.
    """
    found: dict[str, list[str]] = {}
    for group in _groups(rows):
        names = found.setdefault(group.score, [])
        names += [name for name in group.others if name not in names]
    return {score: names for score, names in found.items() if names}


@dataclass(frozen=True)
class _Group:
    """The students that have a score in a split. `paired`: with the influence of their images."""

    split: str
    score: str
    paired: dict[str, tuple[Row, Tensor]]  # those that drew what the first one drew
    others: list[str]


def _groups(rows: Sequence[Row]) -> Iterator[_Group]:
    students = [row for row in rows if row.scores and row.folder and row.run]
    influence = {row.name: load_influence(row.folder) for row in students if row.folder}
    for split, score in dict.fromkeys(key for values in influence.values() for key in values):
        having = [
            (row, influence[row.name][split, score])
            for row in students
            if (split, score) in influence[row.name] and score in row.scores.get(split, {})
        ]
        if not having:
            continue
        first = _drawn(*having[0], score)
        paired = {row.name: (row, values) for row, values in having if _drawn(row, values, score) == first}
        yield _Group(split, score, paired, [row.name for row, _ in having if row.name not in paired])


def _difference(
    split: str, score: str, best: str, other: str, value: float, influence: Tensor, of_best: Tensor
) -> Difference:
    paired = {"": influence.double() - of_best.double()}
    return Difference(split, score, best, other, value, intervals({"": value}, paired)[""])


def _drawn(row: Row, influence: Tensor, score: str) -> Any:
    """Returns what must be equal in two rows so that a score of them is paired: prompts, seed, judges."""
    benchmark = score.removesuffix("_am")
    if benchmark in ("geneval", "geneval2"):
        return len(influence), row.protocol.get(benchmark)
    return len(influence), [row.protocol.get(key) for key in SAME]


def noise_remarks(found: Sequence[Difference], left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns what a reader should know about the differences, as sentences; [] if there are none.

    `left_out`: from unpaired().
    """
    lines = []
    for split, score in dict.fromkeys((each.split, each.score) for each in found):
        same = [each for each in found if (each.split, each.score) == (split, score) and each.within_noise]
        if same:
            others = ", ".join(each.other for each in same)
            lines.append(f"{COLUMNS[score].label}, {split}: {same[0].best} and {others}")
    how = f"{CONFIDENCE:.0%} intervals, paired by caption"
    remarks = [f"Within noise of the best student ({how}): {'; '.join(lines)}."] if lines else []
    if found and not lines:
        remarks = [f"No student is within noise of the best one in any score ({how})."]
    if left_out:
        labels: dict[str, list[str]] = {}
        for score, names in left_out.items():
            labels.setdefault(", ".join(names), []).append(COLUMNS[score].label)
        others = "; ".join(f"{names} ({', '.join(scores)})" for names, scores in labels.items())
        remarks.append(f"Not compared, because they drew other captions, or with another seed: {others}.")
    return remarks


def interval_remarks(rows: Sequence[Row]) -> list[str]:
    """Returns what the intervals in the table are, in sentences; [] if it has none."""
    if not any(found for row in rows for found in row.intervals.values()):
        return []
    shown = {score for row in rows for scores in row.scores.values() for score in scores}
    sentences = [
        f"± is half of a {CONFIDENCE:.0%} interval, by a bootstrap over the images of the evaluation. The training and "
        f"the real images are taken as fixed."
    ]
    if "kid" in shown:
        sentences.append("Of KID it is the standard deviation over subsets.")
    if "fid_infinity" in shown:
        sentences.append("FID∞ is extrapolated to infinitely many images: FID - FID∞ is FID's bias at their number.")
    elif "fid" in shown:
        sentences.append("FID has a bias, which depends on the number of images: compare it only at the same number.")
    return [" ".join(sentences)]
