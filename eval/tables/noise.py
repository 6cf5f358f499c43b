"""Which differences between the rows of a report are within noise, by the influence of each image on the scores.

In: rows that drew the same captions. Out: for each score of a split, the difference of every student to the best one,
with its interval, paired by caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from randcond.eval.scores.bootstrap import CONFIDENCE, Interval, intervals, load_influence
from randcond.eval.scores.metrics import METRICS
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

    Rows that drew other prompts than the first one with the score are left out: they can't be paired.
    """
    students = [row for row in rows if row.scores and row.folder and row.run]
    influence = {row.name: load_influence(row.folder) for row in students if row.folder}
    lower = {metric.best for metric in METRICS.values() if metric.lower}
    found = []
    for split, score in dict.fromkeys(key for values in influence.values() for key in values):
        having = [
            row for row in students if (split, score) in influence[row.name] and score in row.scores.get(split, {})
        ]
        paired = [row for row in having if _drawn(row, score) == _drawn(having[0], score)]
        values = {row.name: row.scores[split][score] for row in paired}
        if len(values) < 2:
            continue
        best = (min if score in lower else max)(values, key=lambda name: values[name])
        for name in values.keys() - {best}:
            pair = influence[name][split, score], influence[best][split, score]
            if len(pair[0]) == len(pair[1]):
                found.append(_difference(split, score, best, name, values[name] - values[best], *pair))
    order = {row.name: place for place, row in enumerate(rows)}
    return sorted(found, key=lambda each: (each.split, list(COLUMNS).index(each.score), order[each.other]))


def _difference(
    split: str, score: str, best: str, other: str, value: float, influence: Tensor, of_best: Tensor
) -> Difference:
    paired = {"": influence.double() - of_best.double()}
    return Difference(split, score, best, other, value, intervals({"": value}, paired)[""])


def _drawn(row: Row, score: str) -> Any:
    """Returns what must be equal in two rows so that a score of them is paired: prompts, seed, judges."""
    benchmark = score.removesuffix("_am")
    if benchmark in ("geneval", "geneval2"):
        return row.protocol.get(benchmark)
    return [row.protocol.get(key) for key in SAME]


def noise_remarks(found: Sequence[Difference]) -> list[str]:
    """Returns what a reader should know about the differences, as sentences; [] if there are none."""
    if not found:
        return []
    lines = []
    for split, score in dict.fromkeys((each.split, each.score) for each in found):
        same = [each for each in found if (each.split, each.score) == (split, score) and each.within_noise]
        if same:
            others = ", ".join(each.other for each in same)
            lines.append(f"{COLUMNS[score].label}, {split}: {same[0].best} and {others}")
    how = f"{CONFIDENCE:.0%} intervals, paired by caption"
    if not lines:
        return [f"No student is within noise of the best one in any score ({how})."]
    return [f"Within noise of the best student ({how}): {'; '.join(lines)}."]


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
