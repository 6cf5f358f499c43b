"""Keeps the reports of repeated tables, and puts their claims on one page: `make mini-results`.

In: folders of reports, a folder to keep them in. Out: there, each report without its page, README.md and its pictures.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from randcond.eval.report.repetitions import CONFIDENCE, claim_lines
from randcond.eval.report.result_plots import COLOURS, plot_claims, plot_effects
from randcond.eval.report.table import as_markdown
from randcond.launch.config.experiments import table_names
from randcond.launch.config.tables import load_table
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, write_text

KEPT = ("*.md", "*.json", "*.png")
READING = "reading.md"  # written by hand beside them


def keep(reports: Path, out: Path) -> list[str]:
    """Copies every table's finished report; returns the tables' names."""
    names = [name for name in table_names() if (reports / name / "report.json").is_file()]
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)  # of an older report, pictures that this one has no more
        (out / name).mkdir(parents=True, exist_ok=True)
        for path in (path for kind in KEPT for path in (reports / name).glob(kind)):
            shutil.copy(path, out / name / path.name)
    return names


def summarize(out: Path) -> None:
    """Writes README.md and its pictures over the reports that are kept."""
    facts = {path.parent.name: read_json(path) for path in sorted(out.glob("*/report.json"))}
    claims = {name: found["claims"] for name, found in facts.items() if found.get("claims")}
    again = _mark_repeated(claims, {name: found.get("replicates", {}) for name, found in facts.items()})
    lines = [
        "# The paper in miniature: results",
        _tally(claims),
        *([again] if again else []),
        f"Differences are means over the repetitions with their {CONFIDENCE:.0%} interval (Student's t, paired by "
        "repetition; of shares, no narrower than their number of images allows), each claim by itself: of many, one in "
        f"{1 / (1 - CONFIDENCE):.0f} would seem to show or not by chance. Each table's folder has all scores, the "
        "protocol and pictures.",
        *_limits(facts, any(claim["margin"] for each in claims.values() for claim in each)),
        *([f"[What they say, and how the conditions were chosen]({READING})."] if (out / READING).is_file() else []),
        *(["![claims](claims.png)"] if claims else []),
    ]
    for name, found in facts.items():
        lines += [f"## [{found['title']}]({name}/report.md)", f"`make {name}`"]
        if found.get("claims"):
            lines.append(as_markdown(claim_lines(found["claims"])))
    write_text(out / "README.md", "\n\n".join(lines) + "\n")
    if claims:
        plot_claims(out / "claims.png", claims)
        plot_effects(out / "effects.png", claims, {name: facts[name]["repetitions"] for name in claims})


def _limits(facts: dict[str, Any], allowing: bool) -> list[str]:
    """What the repetitions vary, and what they don't; `allowing`: whether a claim lets a row do a little worse."""
    counts = {len(found["repetitions"]) for found in facts.values() if found.get("repetitions")}
    if not counts:
        return []
    return [
        f"What an interval does not cover: there are {' or '.join(map(str, sorted(counts)))} repetitions, so that it "
        "rests on their differences being spread normally; they vary the digits left out (some digits more than once) "
        "and the seeds of cache, student, training and evaluation, while teacher, judge and the world's captions are "
        "the same in all. A verdict whose interval ends next to its limit is a weak one."
        + (" Points in brackets are what a claim allows: no worse by more than that." if allowing else "")
    ]


def _tally(claims: dict[str, list[dict[str, Any]]]) -> str:
    """How many claims came out how; those that were asked when the runs were known stand apart."""
    said: dict[bool, list[str]] = {False: [], True: []}
    for each in claims.values():
        for claim in each:
            if "as" not in claim:
                said[claim["afterwards"]].append(claim["here"])
    before, after = (
        f"{', '.join(f'{found.count(verdict)} {verdict}' for verdict in COLOURS)}, of {len(found)} claims"
        for found in said.values()
    )
    more = f" Asked afterwards, when the runs were known, which no interval covers: {after}." if said[True] else ""
    return f"{before} asked beforehand.{more}"


def _mark_repeated(claims: dict[str, list[dict[str, Any]]], replicates: dict[str, Any]) -> str:
    """Says of a claim that another table has measured, by the same experiments' repetitions, which one: it counts once.

    Where the values differ a little, the same runs were made once more, on another machine. What it returns: how the
    claims came out that were put to other repetitions again, which count each time.
    """
    seen: dict[Any, tuple[str, list[float]]] = {}
    verdicts: dict[Any, dict[str, str]] = {}  # what is asked -> table -> how it came out there
    texts: dict[Any, str] = {}
    for name, each in claims.items():
        arms = load_table(name).arms
        for claim in each:
            if gone := set(claim["contrast"]) - set(arms):
                raise UserError(f"{name}: its report has rows {sorted(gone)}, its table has none: make {name} again")
            rows = frozenset((arms[row].experiment, weight) for row, weight in claim["contrast"].items())
            asked = claim["score"], claim["split"], claim["margin"], rows
            key = *asked, json.dumps(replicates[name], sort_keys=True)
            first, values = seen.setdefault(key, (name, claim["values"]))
            if first != name:
                claim["as"] = first if claim["values"] == values else f"{first}, run once more"
            else:
                verdicts.setdefault(asked, {})[name] = claim["here"]
                texts[asked] = claim["text"]
    twice = {asked: found for asked, found in verdicts.items() if len(found) > 1}
    if not twice:
        return ""
    differ = [
        f"{texts[asked]}: {', '.join(f'{here} in {name}' for name, here in found.items())}"
        for asked, found in twice.items()
        if len(set(found.values())) > 1
    ]
    told = f", {len(differ)} otherwise ({'; '.join(differ)})" if differ else ""
    return (
        f"{len(twice)} of them were put to further repetitions, of other digits and seeds, and count there again: "
        f"{len(twice) - len(differ)} came out the same{told}."
    )


def main() -> None:
    """`python -m randcond.eval.report.miniature_results REPORTS [REPORTS ...] OUT`."""
    *folders, out = (Path(word) for word in sys.argv[1:])
    print("\n".join(f"{out / name}" for reports in folders for name in keep(reports, out)))
    summarize(out)


if __name__ == "__main__":
    main()
