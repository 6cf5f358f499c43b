"""Repetitions of a table: each row's mean and spread, and what they say of a claim.

In: rows of every repetition, in one order. Out: one row each with means and standard deviations; verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t

from randcond.eval.collect import Row, Scores
from randcond.eval.table import COLUMNS
from randcond.launch.table import Claim

CONFIDENCE = 0.95


def merge(repetitions: dict[str, list[Row]]) -> list[Row]:
    """One row per row of the table: means over the repetitions, with their standard deviations (n - 1).

    What is not a number, the protocol, and folders of images and logs, are the first repetition's.
    """
    rows = []
    for each in zip(*repetitions.values(), strict=True):
        scores, spread = _over([row.scores for row in each])
        notes = [f"{name}: {note}" for name, row in zip(repetitions, each, strict=True) for note in row.notes]
        common = [note for note in each[0].notes if all(note in row.notes for row in each)]
        notes = common + [note for note in notes if note.split(": ", 1)[1] not in common]
        seconds = [row.facts["seconds"] for row in each if row.facts.get("seconds") is not None]
        facts = {key: value for key, value in each[0].facts.items() if all(row.facts.get(key) == value for row in each)}
        facts |= {"seconds": mean(seconds)} if seconds else {}
        rows.append(replace(each[0], scores=scores, spread=spread, notes=notes, facts=facts))
    return rows


def _over(found: Sequence[Scores]) -> tuple[Scores, Scores]:
    scores: Scores = {}
    spread: Scores = {}
    for split in found[0]:
        for name, first in found[0][split].items():
            values = [each[split][name] for each in found]
            number = isinstance(first, int | float) and not isinstance(first, bool)
            scores.setdefault(split, {})[name] = mean(values) if number else first
            if number and len(values) > 1 and len(set(values)) > 1:
                spread.setdefault(split, {})[name] = stdev(values)
    return scores, spread


@dataclass(frozen=True)
class Verdict:
    """What repetitions say of a claim."""

    claim: Claim
    values: list[float]  # of the contrast, one per repetition

    @property
    def margin(self) -> float:
        """Half the width of the mean's confidence interval (Student's t, paired by repetition)."""
        n = len(self.values)
        return float(student_t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * stdev(self.values) / n**0.5

    @property
    def said(self) -> str:
        """reproduced, not reproduced (the contrary shows), or within noise."""
        least = -self.claim.margin
        low, high = mean(self.values) - self.margin, mean(self.values) + self.margin
        return "reproduced" if low > least else "not reproduced" if high < least else "within noise"

    def facts(self) -> dict[str, Any]:
        """As plain data: the claim, `values`, the mean's `interval` to either side, `here`."""
        return {**vars(self.claim), "values": self.values, "interval": self.margin, "here": self.said}


def claim_lines(claims: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A header and a line per claim, given as plain data; empty where there is none."""
    lines = []
    for claim in claims:
        column = COLUMNS[claim["score"]]
        difference = f"{column.write(mean(claim['values']), '+')} ± {column.write(claim['interval'])}"
        same = f", as in {claim['as']}" if "as" in claim else ""
        lines.append([claim["text"], f"{column.label}, {claim['split']}", difference, claim["here"] + same])
    head = ["the paper's claim", "score", f"difference, {CONFIDENCE:.0%} interval", "here"]
    return [head, *lines] if lines else []


def verdicts(claims: Sequence[Claim], repetitions: dict[str, list[Row]]) -> list[Verdict]:
    """A verdict on each claim; raises ValueError naming a score that no row has, or a table with one repetition."""
    if claims and len(repetitions) < 2:
        raise ValueError("claims: one repetition has no spread; give a table with claims several replicates")
    found = []
    for claim in claims:
        values = []
        for rows in repetitions.values():
            by_name = {row.name: row.scores.get(claim.split, {}) for row in rows}
            for name in claim.contrast:
                if claim.score not in by_name[name]:
                    raise ValueError(f"claims: {claim.text!r}: row {name} has no {claim.score} of {claim.split}")
            values.append(sum(weight * by_name[name][claim.score] for name, weight in claim.contrast.items()))
        found.append(Verdict(claim, values))
    return found
