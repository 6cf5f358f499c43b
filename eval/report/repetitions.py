"""Repetitions of a table: each row's mean and spread, and what they say of a claim.

In: rows of every repetition, in one order. Out: one row each with means and standard deviations; verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from scipy.stats import norm
from scipy.stats import t as student_t

from randcond.eval.report.collect import Row, Scores
from randcond.eval.report.table import COLUMNS
from randcond.launch.config.tables import Claim
from randcond.launch.errors import UserError

CONFIDENCE = 0.95


def merge(repetitions: dict[str, list[Row]]) -> list[Row]:
    """One row per row of the table: means over the repetitions, with their standard deviations (n - 1).

    What is not a number, the protocol, and folders of images and logs, are the first repetition's.
    """
    rows = []
    together = aligned(repetitions)
    for each in together.values():
        scores, spread = _over([row.scores for row in each])
        notes = [f"{name}: {note}" for name, row in zip(repetitions, each, strict=True) for note in row.notes]
        common = [note for note in each[0].notes if all(note in row.notes for row in each)]
        notes = common + [note for note in notes if note.split(": ", 1)[1] not in common]
        seconds = [row.facts["seconds"] for row in each if row.facts.get("seconds") is not None]
        facts = {key: value for key, value in each[0].facts.items() if all(row.facts.get(key) == value for row in each)}
        facts |= {"seconds": mean(seconds)} if seconds else {}
        rows.append(replace(each[0], scores=scores, spread=spread, notes=notes, facts=facts))
    for name in dict.fromkeys(row.name for each in repetitions.values() for row in each if row.name not in together):
        having = [repetition for repetition, each in repetitions.items() if name in {row.name for row in each}]
        rows[0].notes.append(f"left out: {name}, which of the repetitions only {', '.join(having)} has")
    return rows


def aligned(repetitions: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows by name, those that every repetition has: one may lack another's best step (`train.eval_every`)."""
    found = [{row.name: row for row in rows} for rows in repetitions.values()]
    return {name: [each[name] for each in found] for name in found[0] if all(name in each for each in found)}


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
    errors: list[float]  # each one's standard error by its number of images, of shares; else 0

    @property
    def margin(self) -> float:
        """Half the width of the mean's confidence interval.

        Student's t, paired by repetition; of shares no less than what their images leave open (binomial, rows taken as
        independent): three repetitions that happen to agree, near 0 or 1 above all, are no proof of a sharp mean.
        """
        n, upper = len(self.values), 0.5 + CONFIDENCE / 2
        spread = float(student_t.ppf(upper, n - 1)) * stdev(self.values) / n**0.5
        return max(spread, float(norm.ppf(upper)) * sum(error**2 for error in self.errors) ** 0.5 / n)

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
        difference = f"{column.difference(mean(claim['values']), '+')} ± {column.difference(claim['interval'])}"
        same = f", as in {claim['as']}" if "as" in claim else ""
        score = f"{column.label}, {claim['split']}{', points' if column.share else ''}"
        lines.append([asked(claim), _contrast(claim["contrast"]), score, difference, claim["here"] + same])
    head = ["the paper's claim", "rows", "score", f"difference, {CONFIDENCE:.0%} interval", "here"]
    return [head, *lines] if lines else []


def asked(claim: dict[str, Any]) -> str:
    """A claim's text, and whether it was put to the runs when these were known."""
    return str(claim["text"]) + (" (asked afterwards)" if claim["afterwards"] else "")


def _contrast(weights: dict[str, float]) -> str:
    """`row - other row`."""
    parts = [
        f"{'-' if weight < 0 else '+'} {'' if abs(weight) == 1 else f'{abs(weight):g} '}{row}"
        for row, weight in weights.items()
    ]
    return " ".join(parts).removeprefix("+ ")


def verdicts(claims: Sequence[Claim], repetitions: dict[str, list[Row]]) -> list[Verdict]:
    """A verdict on each claim; raises UserError naming a score that no row has, or a table with one repetition."""
    if claims and len(repetitions) < 2:
        raise UserError("claims: one repetition has no spread; give a table with claims several replicates")
    found = []
    for claim in claims:
        if claim.score not in COLUMNS:
            raise UserError(f"claims: {claim.text!r}: unknown score {claim.score}; known: {', '.join(COLUMNS)}")
        values, errors = [], []
        for rows in repetitions.values():
            by_name = {row.name: row.scores.get(claim.split, {}) for row in rows}
            for name in claim.contrast:
                if claim.score not in by_name[name]:
                    raise UserError(f"claims: {claim.text!r}: row {name} has no {claim.score} of {claim.split}")
            values.append(sum(weight * by_name[name][claim.score] for name, weight in claim.contrast.items()))
            errors.append(_image_error(claim, by_name))
        found.append(Verdict(claim, values, errors))
    return found


def _image_error(claim: Claim, scores: Scores) -> float:
    """A contrast's standard error by its number of images, n: the binomial one of each share.

    A share is taken for (n * share + 1) / (n + 2): 300 right of 300 don't say that the 301st will be.
    """
    if not COLUMNS[claim.score].share:
        return 0.0
    variance = 0.0
    for name, weight in claim.contrast.items():
        images = scores[name]["images"]
        share = (images * scores[name][claim.score] + 1) / (images + 2)
        variance += weight**2 * share * (1 - share) / images
    return float(variance**0.5)
