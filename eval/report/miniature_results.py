"""Copies the reports of the miniature tables and summarises their claims on one page: `make mini-results`.

In: folders of reports. Out: a folder with each report without its HTML page, README.md and its plots.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from randcond.eval.report.result_plots import COLOURS, plot_claims, plot_effects
from randcond.eval.tables.repetitions import CONFIDENCE, Verdict, claim_lines
from randcond.eval.tables.table import as_markdown
from randcond.launch.config.experiments import table_names
from randcond.launch.config.tables import load_table
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, read_record, write_text

KEPT = ("*.md", "*.json", "*.png")
READING = "reading.md"  # written by hand, next to README.md


BEYOND = "beyond"  # tables beyond the paper begin with it; their results have a folder of this name


def keep(reports: Path, out: Path, beyond: bool = False) -> list[str]:
    """Copies the report of every table that has one from `reports` to `out`; returns the names of the tables.

    beyond: those of the tables beyond the paper, instead of all others.
    """
    names = [
        name
        for name in table_names()
        if name.startswith(BEYOND) == beyond and (reports / name / "report.json").is_file()
    ]
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)  # an older report may have pictures that the new one lacks
        (out / name).mkdir(parents=True, exist_ok=True)
        for path in (path for kind in KEPT for path in (reports / name).glob(kind)):
            shutil.copy(path, out / name / path.name)
        for path in (out / name).glob("*.png"):
            shrink(path)
    return names


def shrink(path: Path) -> None:
    """Rewrites a PNG file with a palette of 64 colours, which takes about a sixth of the bytes."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(64, kmeans=1, dither=Image.Dither.NONE)
    with atomic_write(path) as temporary:
        small.save(temporary, format="PNG", optimize=True)


def summarize(out: Path, title: str = "The paper in miniature") -> None:
    """Writes README.md and its plots from the reports in `out`."""
    reports = {path.parent.name: read_record(path) for path in sorted(out.glob("*/report.json"))}
    found = {
        name: [Verdict.read(facts) for facts in report["claims"]]
        for name, report in reports.items()
        if report.get("claims")
    }
    verdicts, repeated = _mark_repeated(found, {name: report.get("replicates", {}) for name, report in reports.items()})
    lines = [
        f"# {title}: results",
        _tally(verdicts),
        *([repeated] if repeated else []),
        f"Differences are means over the repetitions with their {CONFIDENCE:.0%} interval (Student's t, paired by "
        "repetition; of shares, no narrower than their number of images allows), each claim by itself: of many, one in "
        f"{1 / (1 - CONFIDENCE):.0f} would seem to show or not by chance. Each table's folder has all scores, the "
        "protocol and pictures.",
        *_limits(reports, any(verdict.claim.margin for of_table in verdicts.values() for verdict in of_table)),
        *([f"[What they say, and how the conditions were chosen]({READING})."] if (out / READING).is_file() else []),
        *(["![claims](claims.png)"] if verdicts else []),
    ]
    for name, report in reports.items():
        lines += [f"## [{report['title']}]({name}/report.md)", f"`make {name}`"]
        if name in verdicts:
            lines.append(as_markdown(claim_lines(verdicts[name])))
    write_text(out / "README.md", "\n\n".join(lines) + "\n")
    if verdicts:
        plot_claims(out / "claims.png", verdicts)
        plot_effects(out / "effects.png", verdicts, {name: reports[name]["repetitions"] for name in verdicts})
        for name in ("claims.png", "effects.png"):
            if (out / name).is_file():
                shrink(out / name)


def _limits(reports: dict[str, Any], has_margins: bool) -> list[str]:
    """Returns the paragraph about what the repetitions vary and what they don't.

    `has_margins`: a claim has a margin ("no worse than").
    """
    counts = {len(report["repetitions"]) for report in reports.values() if report.get("repetitions")}
    if not counts:
        return []
    return [
        f"What an interval does not cover: there are {' or '.join(map(str, sorted(counts)))} repetitions, so that it "
        "rests on their differences being spread normally; they vary the digits left out (some digits more than once) "
        "and the seeds of cache, student, training and evaluation, while teacher, judge and the world's captions are "
        "the same in all. A verdict whose interval ends next to its limit is a weak one. Within noise: "
        "the interval contains the limit."
        + (" The limit is 0, or the points in brackets (no worse by more than that)." if has_margins else " It is 0.")
    ]


def _tally(verdicts: dict[str, list[Verdict]]) -> str:
    """Counts the verdicts. Claims that were added after the results were known are counted separately."""
    outcomes: dict[bool, list[str]] = {False: [], True: []}  # added afterwards -> outcomes
    for of_table in verdicts.values():
        for verdict in of_table:
            if not verdict.same_as:
                outcomes[verdict.claim.afterwards].append(verdict.outcome)
    ours = all(verdict.claim.ours for of_table in verdicts.values() for verdict in of_table)
    before, after = (
        f"{', '.join(_counted(group.count(each), each, ours) for each in COLOURS)}, of {len(group)} claims"
        for group in outcomes.values()
    )
    more = f" Asked afterwards, when the runs were known, which no interval covers: {after}." if outcomes[True] else ""
    return f"{before} asked beforehand.{more}"


def _counted(number: int, outcome: str, ours: bool) -> str:
    if not ours:
        return f"{number} {outcome}"
    one, more = {
        "reproduced": ("holds", "hold"),
        "within noise": ("is within noise", "are within noise"),
        "not reproduced": ("shows the opposite", "show the opposite"),
    }[outcome]
    return f"{number} {one if number == 1 else more}"


def _mark_repeated(found: dict[str, list[Verdict]], replicates: dict[str, Any]) -> tuple[dict[str, list[Verdict]], str]:
    """Finds claims that several tables make. Returns the verdicts, and a paragraph about other repetitions, or "".

    If two tables make the same claim with the same experiments and repetitions, it counts once: `same_as` of the second
    one names the first table. Its values may differ a little, if the runs were made again on another
    machine. If the repetitions differ (other digits and seeds), each claim counts, and the returned paragraph compares
    their verdicts. `replicates`: table -> its repetitions.
    """
    first_seen: dict[Any, tuple[str, list[float]]] = {}  # claim and repetitions -> the first table, its values
    verdicts: dict[Any, dict[str, str]] = {}  # claim -> table -> verdict
    texts: dict[Any, str] = {}
    marked: dict[str, list[Verdict]] = {}
    for name, of_table in found.items():
        arms = load_table(name).arms
        for verdict in of_table:
            claim, same_as = verdict.claim, ""
            if unknown := set(claim.contrast) - set(arms):
                raise UserError(
                    f"{name}: its report has rows {sorted(unknown)}, which its table does not have: run `make {name}`"
                )
            rows = frozenset((arms[row].experiment, weight) for row, weight in claim.contrast.items())
            content = claim.score, claim.split, claim.margin, rows
            key = *content, json.dumps(replicates[name], sort_keys=True)
            first, values = first_seen.setdefault(key, (name, verdict.values))
            if first != name:
                same_as = first if verdict.values == values else f"{first}, run once more"
            else:
                verdicts.setdefault(content, {})[name] = verdict.outcome
                texts[content] = claim.text
            marked.setdefault(name, []).append(replace(verdict, same_as=same_as))
    repeated = {content: by_table for content, by_table in verdicts.items() if len(by_table) > 1}
    if not repeated:
        return marked, ""
    differing = [
        f"{texts[content]}: {', '.join(f'{verdict} in {name}' for name, verdict in by_table.items())}"
        for content, by_table in repeated.items()
        if len(set(by_table.values())) > 1
    ]
    details = f", {len(differing)} otherwise ({'; '.join(differing)})" if differing else ""
    return marked, (
        f"{len(repeated)} of them were put to further repetitions, of other digits and seeds, and count there again: "
        f"{len(repeated) - len(differing)} came out the same{details}."
    )


def main() -> None:
    """`python -m randcond.eval.report.miniature_results REPORTS [REPORTS ...] OUT`."""
    *folders, out = (Path(word) for word in sys.argv[1:])
    print("\n".join(f"{out / name}" for reports in folders for name in keep(reports, out)))
    summarize(out)
    beyond = out / BEYOND
    if kept := [name for reports in folders for name in keep(reports, beyond, beyond=True)]:
        print("\n".join(f"{beyond / name}" for name in kept))
    if any(beyond.glob("*/report.json")):
        summarize(beyond, "Beyond the paper, in miniature")


if __name__ == "__main__":
    main()
