"""Keeps the reports of repeated tables, and puts their claims on one page: `make mini-results`.

In: folders of reports, a folder to keep them in. Out: there, each report without its page, README.md and its pictures.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from randcond.data.files import read_json, write_text
from randcond.eval.repetitions import CONFIDENCE, claim_lines
from randcond.eval.spread import COLOURS, draw_claims, draw_effects
from randcond.eval.table import as_markdown
from randcond.launch.config import table_names
from randcond.launch.table import load_table

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
    _mark_repeated(claims)
    said = [claim["here"] for each in claims.values() for claim in each if "as" not in claim]
    lines = [
        "# The paper in miniature: results",
        ", ".join(f"{said.count(verdict)} {verdict}" for verdict in COLOURS) + f", of {len(said)} claims. "
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
        draw_claims(out / "claims.png", claims)
        draw_effects(out / "effects.png", claims, {name: facts[name]["repetitions"] for name in claims})


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


def _mark_repeated(claims: dict[str, list[dict[str, Any]]]) -> None:
    """Says of a claim that another table has measured, by the same experiments' repetitions, which one: it counts once.

    Where the values differ a little, the same runs were made once more, on another machine.
    """
    seen: dict[Any, tuple[str, list[float]]] = {}
    for name, each in claims.items():
        table = load_table(name)
        repeated = json.dumps(table.replicates, sort_keys=True)
        for claim in each:
            rows = frozenset((table.arms[row].experiment, weight) for row, weight in claim["contrast"].items())
            key = claim["score"], claim["split"], claim["margin"], rows, repeated
            first, values = seen.setdefault(key, (name, claim["values"]))
            if first != name:
                claim["as"] = first if claim["values"] == values else f"{first}, run once more"


def main() -> None:
    """`python -m randcond.eval.results REPORTS [REPORTS ...] OUT`."""
    *folders, out = (Path(word) for word in sys.argv[1:])
    print("\n".join(f"{out / name}" for reports in folders for name in keep(reports, out)))
    summarize(out)


if __name__ == "__main__":
    main()
