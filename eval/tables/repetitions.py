"""Repetitions of a table: mean and standard deviation of each row, and verdicts on the table's claims.

In: the rows of every repetition. Out: one row per name, with means and standard deviations; verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from scipy.stats import norm
from scipy.stats import t as student_t

from randcond.eval.tables.collect import Row, Scores
from randcond.eval.tables.table import COLUMNS, SPREADS
from randcond.launch.config.tables import Claim
from randcond.launch.errors import UserError

CONFIDENCE = 0.95


def merge(repetitions: dict[str, list[Row]]) -> list[Row]:
    """Merges the rows of all repetitions: means of the scores, with their standard deviations (n - 1).

    The training seconds are averaged, too. Other facts are kept if they are equal in all repetitions. Scores that are
    no numbers, the protocol and the folders are those of the first repetition.
    """
    merged = []
    rows_by_name = aligned(repetitions)
    for rows in rows_by_name.values():
        scores, spread = _means_and_deviations([row.scores for row in rows])
        notes = [
            f"{repetition}: {note}" for repetition, row in zip(repetitions, rows, strict=True) for note in row.notes
        ]
        common = [note for note in rows[0].notes if all(note in row.notes for row in rows)]
        notes = common + [note for note in notes if note.split(": ", 1)[1] not in common]
        seconds = [row.facts["seconds"] for row in rows if row.facts.get("seconds") is not None]
        facts = {key: value for key, value in rows[0].facts.items() if all(row.facts.get(key) == value for row in rows)}
        facts |= {"seconds": mean(seconds)} if seconds else {}
        own = rows[0].intervals if len(rows) == 1 else {}  # several repetitions have a spread instead
        merged.append(replace(rows[0], scores=scores, spread=spread, notes=notes, facts=facts, intervals=own))
    all_names = dict.fromkeys(row.name for rows in repetitions.values() for row in rows)
    for name in [name for name in all_names if name not in rows_by_name]:
        having = [repetition for repetition, rows in repetitions.items() if name in {row.name for row in rows}]
        merged[0].notes.append(f"left out: {name}: only in repetition {', '.join(having)}")
    return merged


def aligned(repetitions: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Returns row name -> its row in each repetition, for the rows that all repetitions have.

    A repetition may lack a row that others have: the best step (`train.eval_every`).
    """
    by_name = [{row.name: row for row in rows} for rows in repetitions.values()]
    return {name: [rows[name] for rows in by_name] for name in by_name[0] if all(name in rows for rows in by_name)}


def _means_and_deviations(repeated: Sequence[Scores]) -> tuple[Scores, Scores]:
    scores: Scores = {}
    spread: Scores = {}
    for split in repeated[0]:
        for name, first in repeated[0][split].items():
            if name in SPREADS.values() and not all(name in repetition[split] for repetition in repeated):
                continue  # an older evaluation has it, a newer one with as few images has not
            values = [repetition[split][name] for repetition in repeated]
            is_number = isinstance(first, int | float) and not isinstance(first, bool)
            scores.setdefault(split, {})[name] = mean(values) if is_number else first
            if is_number and len(values) > 1 and len(set(values)) > 1:
                spread.setdefault(split, {})[name] = stdev(values)
    return scores, spread


@dataclass(frozen=True)
class Verdict:
    """The verdict of a table's repetitions on one claim."""

    claim: Claim
    values: list[float]  # of the contrast, one per repetition
    interval: float  # half the width of the confidence interval of their mean
    outcome: str  # reproduced, not reproduced (the repetitions show the opposite), or within noise
    same_as: str = ""  # the table that has made this claim about the same experiments already

    @classmethod
    def of(cls, claim: Claim, values: list[float], errors: list[float]) -> "Verdict":
        """Returns the verdict. `errors`: standard error of each value by its number of images, for shares; else 0."""
        interval = _interval(values, errors)
        low, high, least = mean(values) - interval, mean(values) + interval, -claim.margin
        outcome = "reproduced" if low > least else "not reproduced" if high < least else "within noise"
        return cls(claim, values, interval, outcome)

    @classmethod
    def read(cls, facts: dict[str, Any]) -> "Verdict":
        """Returns a verdict from the plain data of report.json. The inverse of facts()."""
        claim = Claim(**{key: facts[key] for key in vars(Claim("", {})) if key in facts})
        return cls(claim, facts["values"], facts["interval"], facts["here"])

    def facts(self) -> dict[str, Any]:
        """Returns plain data for report.json: the keys of the claim, values, interval, and the outcome as `here`."""
        claim = {key: value for key, value in vars(self.claim).items() if key != "ours" or value}
        return {**claim, "values": self.values, "interval": self.interval, "here": self.outcome}

    @property
    def word(self) -> str:
        """The outcome in words."""
        return outcome_in_words(self.outcome, self.claim.ours)

    @property
    def text(self) -> str:
        """The text of the claim, marked if it was added after the results of the runs were known."""
        return self.claim.text + (" (asked afterwards)" if self.claim.afterwards else "")


def outcome_in_words(outcome: str, ours: bool) -> str:
    """Returns an outcome as a reader sees it. ours: of a claim that is not the paper's."""
    return {"reproduced": "holds", "not reproduced": "the opposite holds"}.get(outcome, outcome) if ours else outcome


def _interval(values: list[float], errors: list[float]) -> float:
    """Returns half the width of the confidence interval of the mean.

    Student's t, paired by repetition. For shares, the interval is at least as wide as the number of images allows
    (binomial, rows taken as independent). Without this bound, three repetitions that agree by chance would give a far
    too narrow interval, above all near 0 or 1.
    """
    n, upper = len(values), 0.5 + CONFIDENCE / 2
    spread = float(student_t.ppf(upper, n - 1)) * stdev(values) / n**0.5
    return max(spread, float(norm.ppf(upper)) * sum(error**2 for error in errors) ** 0.5 / n)


def claim_lines(found: Sequence[Verdict]) -> list[list[str]]:
    """Returns a header and one line of cells per verdict; [] if there are no verdicts."""
    lines = []
    for verdict in found:
        claim, column = verdict.claim, COLUMNS[verdict.claim.score]
        difference = f"{column.difference(mean(verdict.values), '+')} ± {column.difference(verdict.interval)}"
        same = f", as in {verdict.same_as}" if verdict.same_as else ""
        score = f"{column.label}, {claim.split}{', points' if column.share else ''}"
        lines.append([verdict.text, _contrast(claim.contrast), score, difference, verdict.word + same])
    whose = "claim" if all(verdict.claim.ours for verdict in found) else "the paper's claim"
    header = [whose, "rows", "score", f"difference, {CONFIDENCE:.0%} interval", "here"]
    return [header, *lines] if lines else []


def _contrast(weights: dict[str, float]) -> str:
    """Returns a contrast as text: `row - other row`."""
    parts = [
        f"{'-' if weight < 0 else '+'} {'' if abs(weight) == 1 else f'{abs(weight):g} '}{row}"
        for row, weight in weights.items()
    ]
    return " ".join(parts).removeprefix("+ ")


def verdicts(claims: Sequence[Claim], repetitions: dict[str, list[Row]]) -> list[Verdict]:
    """Returns a verdict on each claim.

    Raises UserError naming a score that a row does not have, or if a table with claims has a single repetition.
    """
    if claims and len(repetitions) < 2:
        raise UserError("claims: one repetition has no spread; give a table with claims at least two replicates")
    results = []
    for claim in claims:
        if claim.score not in COLUMNS:
            raise UserError(f"claims: {claim.text!r}: unknown score {claim.score}; known: {', '.join(COLUMNS)}")
        values, errors = [], []
        for rows in repetitions.values():
            scores = {row.name: row.scores.get(claim.split, {}) for row in rows}
            for name in claim.contrast:
                if claim.score not in scores[name]:
                    raise UserError(f"claims: {claim.text!r}: row {name} has no {claim.score} of {claim.split}")
            values.append(sum(weight * scores[name][claim.score] for name, weight in claim.contrast.items()))
            errors.append(_image_error(claim, scores))
        results.append(Verdict.of(claim, values, errors))
    return results


def _image_error(claim: Claim, scores: Scores) -> float:
    """Returns the standard error of a contrast of shares by the number of images n: the binomial one of each share.

    `scores`: row -> score -> value. Returns 0 for scores that are no shares. A share is replaced by
    (n * share + 1) / (n + 2), because 300 correct images of 300 do not prove that the next one will be correct.
    """
    if not COLUMNS[claim.score].share:
        return 0.0
    variance = 0.0
    for name, weight in claim.contrast.items():
        images = scores[name]["images"]
        share = (images * scores[name][claim.score] + 1) / (images + 2)
        variance += weight**2 * share * (1 - share) / images
    return float(variance**0.5)
