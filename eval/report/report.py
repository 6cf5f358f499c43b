"""The report of experiments or a table: `randcond report NAME ... [key=value ...]`.

In: scores.json of every row and of the teacher. Out: report.json, report.md, report.html (self-contained) and
contact_sheet.png: teacher and arms side by side, same captions, same seeds.
"""

from pathlib import Path
from typing import Any

from randcond.data.contact_sheet import Images, draw_comparison
from randcond.eval.images.generate import load_shown
from randcond.eval.images.prompts import Prompts, choose_prompts, grid_prompts
from randcond.eval.report.collect import Row, collect
from randcond.eval.report.method_figures import draw_picture
from randcond.eval.report.page import render_page
from randcond.eval.report.records import Report
from randcond.eval.report.repetitions import claim_lines, merge, verdicts
from randcond.eval.report.result_plots import plot_repetitions
from randcond.eval.report.table import as_markdown, as_text, table
from randcond.launch.config.experiments import load_config, table_names, to_dict
from randcond.launch.config.tables import load_runs, load_table
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json, write_text

GRID_COLUMNS = 12
LEFT_OUT_OF_PROTOCOL_LINE = ("network", "weights")  # of a protocol, in its one line


def drawn_instead(rows: list[Row], words: list[str]) -> list[str]:
    """What each row of the digits world drew when it was asked for what had no image."""
    lines = []
    for row in rows:
        unseen = row.scores.get("unseen", {})
        if drawn := unseen.get("digits_drawn"):
            shares = ", ".join(f"{digit} {n / unseen['images']:.0%}" for digit, n in drawn.items())
            lines.append(f"asked for {'/'.join(words)}, **{row.name}** drew: {shares}")
    return lines


def protocol_line(row: Row) -> str:
    """Everything a score depends on, in a line."""
    said = {
        key: value
        for key, value in row.protocol.items()
        if key not in LEFT_OUT_OF_PROTOCOL_LINE and value not in (None, {})
    }
    return ", ".join(f"{key} {value}" for key, value in said.items())


def write_report(report: Report) -> None:
    """Writes the files into the report's folder and prints the table."""
    rows, out = report.rows, report.out
    lines = table(rows) if rows else []
    pictures = {**_pictures(report), **_spread(report), **_figures(report)}
    said = [] if report.repetitions else drawn_instead(rows, _excluded(report))
    if report.repetitions:
        names = ", ".join(report.repetitions)
        said.append(
            f"Scores are the mean ± standard deviation of {len(report.repetitions)} repetitions ({names}); protocol, "
            f"pictures and curves are {next(iter(report.repetitions))}'s, report.json holds every one's. A claim's "
            f"interval is of the rows' difference, repetition by repetition (Student's t; of shares, no narrower than "
            f"their number of images allows)."
        )
    said += [f"**{row.name}**: {note}" for row in rows for note in row.notes]
    notes = _notes(rows)
    shown = [f"![{title}]({path.name})" for title, path in pictures.items()]
    claims = claim_lines(_claims(report))
    tables = [as_markdown(each) for each in (lines, claims) if each]
    body = [f"# {report.title}", report.claim, *tables, *said, *shown, *notes]
    write_text(out / "report.md", "\n\n".join(body) + "\n")
    write_text(out / "report.html", render_page(report, lines, claims, said, pictures, notes))
    write_json(out / "report.json", _facts(report))
    print(f"\n{report.title}\n")
    for each in filter(None, (lines, claims)):
        print(as_text(each) + "\n")
    print("\n" + "\n".join(line.replace("**", "") for line in said))
    print("\n".join(notes))
    for path in pictures.values():
        print(f"\nthe picture   {path}", end="")
    print(f"\nthe report    {out / 'report.html'} (also report.md, report.json)")
    if report.following:
        print("try next      " + "\n              ".join(report.following))


def _claims(report: Report) -> list[dict[str, Any]]:
    return [verdict.facts() for verdict in report.verdicts]


def _excluded(report: Report) -> list[str]:
    return next(iter(report.configs.values())).cache.exclude if report.configs else []


def _facts(report: Report) -> dict[str, Any]:
    arms = {row.name: _as_json(row) for row in report.rows}
    facts: dict[str, Any] = {"title": report.title, "arms": arms}
    facts["configurations"] = {name: to_dict(config) for name, config in report.configs.items()}  # the first one's
    if report.repetitions:
        facts["replicates"] = report.replicates
        facts["repetitions"] = {
            name: {row.name: {"scores": row.scores, "protocol": row.protocol} for row in rows}
            for name, rows in report.repetitions.items()
        }
        facts["claims"] = _claims(report)
    return facts


def _as_json(row: Row) -> dict[str, Any]:
    """Facts, then each score by split, the paper's figures and the protocol."""
    names = list(dict.fromkeys(name for scores in row.scores.values() for name in scores))
    by_score = {name: {split: scores[name] for split, scores in row.scores.items() if name in scores} for name in names}
    return {**row.facts, **by_score, "paper": row.paper, "notes": row.notes, "protocol": row.protocol}


def _spread(report: Report) -> dict[str, Path]:
    """Every repetition's scores, of those that the claims are about; title -> file."""
    scores = list(dict.fromkeys((each.claim.score, each.claim.split) for each in report.verdicts))
    if not scores:
        return {}
    plot_repetitions(report.out / "repetitions.png", report.repetitions, scores)
    return {"every repetition, and their mean": report.out / "repetitions.png"}


def _figures(report: Report) -> dict[str, Path]:
    """The pictures that are drawn out of configurations alone; title -> file."""
    return {
        picture.title: draw_picture(picture, configs, report.out / f"{number}-{picture.kind}.png")
        for number, (picture, configs) in enumerate(report.figures, 1)
    }


def _pictures(report: Report) -> dict[str, Path]:
    """The contact sheet, and the sheet of the report's own captions where there are some; title -> file."""
    if not report.configs:
        return {}
    config = next((each for each in report.configs.values() if each.trains), next(iter(report.configs.values())))
    first = next((row for row in report.rows if row.folder), None)
    same = ("prompts_sha256", "seed")  # what makes it the same captions and seeds
    drawn = [row for row in report.rows if row.folder and first and _of(row, same) == _of(first, same)]
    found = {}
    prompts = choose_prompts(config)
    bands = dict(sorted(prompts.shown(config.eval.shown).items(), reverse=True))  # unseen first
    sheets = {"same captions, same seeds": ("contact_sheet.png", prompts, bands, "")}
    if config.eval.grid:
        grid = grid_prompts(config)
        numbers = list(range(len(grid.captions)))
        parts = [numbers[start : start + GRID_COLUMNS] for start in range(0, len(numbers), GRID_COLUMNS)]
        bands = {f"{part[0] + 1} - {part[-1] + 1}": part for part in parts}
        sheets["the captions of eval.grid, same seeds"] = ("grid.png", grid, bands, "grid")
    for title, (name, prompts, bands, below) in sheets.items():
        arms = {row.name: _shown(row, prompts, below) for row in drawn if row.folder}
        arms = {name: images for name, images in arms.items() if images}
        if arms and any(bands.values()):
            draw_comparison(report.out / name, prompts.captions, bands, arms)
            found[title] = report.out / name
    return found


def _of(row: Row, keys: tuple[str, ...]) -> list[Any]:
    return [row.protocol.get(key) for key in keys]


def _shown(row: Row, prompts: Prompts, below: str) -> Images:
    assert row.folder is not None
    return load_shown(row.folder / below, len(prompts.captions), row.protocol["batch"])


def _notes(rows: list[Row]) -> list[str]:
    measured = [row for row in rows if row.scores]
    notes = []
    if any("frechet_judge" in scores for row in measured for scores in row.scores.values()):
        notes.append(
            "Digit, colour and background are read by the embedded judge, a classifier trained on real handwriting. "
            "The Fréchet distance is taken in the judge's features (not FID), to held-out handwriting of the same "
            "digits."
        )
    lines: dict[str, list[str]] = {}
    for row in measured:
        lines.setdefault(protocol_line(row), []).append(row.name)
    notes += [f"Protocol of {', '.join(names)}: {line}." for line, names in lines.items()]
    return notes


def load_report(names: list[str], overrides: list[str], out: str = "") -> Report:
    """A table's report, or one of experiments side by side; raises UserError naming what is not evaluated."""
    if len(names) == 1 and names[0] in table_names():
        return _of_table(names[0], overrides, out)
    if tables := set(names) & set(table_names()):
        raise UserError(f"{sorted(tables)[0]} is a table: report it alone, or name experiments only")
    loaded = [load_config(name, overrides) for name in names]
    configs = {config.name: config for config in loaded}
    if len(configs) < len(names):
        raise UserError("two of the experiments have the same name")
    if len(names) > 1 and not out:
        raise UserError("--out FOLDER: where the report of several experiments goes")
    said = [
        f"{each.name}: student {each.student.rule}, p(t) {each.conditioning.p}, {each.train.steps} steps."
        if each.trains
        else f"{each.name}: {each.teacher.path}, as it is."
        for each in loaded
    ]
    title = ", ".join(configs)
    return Report(Path(out or loaded[0].home), title, " ".join(said), collect(None, configs), configs, [])


def _of_table(name: str, overrides: list[str], out: str) -> Report:
    wanted, runs = load_table(name), load_runs(name, overrides)
    configs = {
        replicate: {experiment: run.config for experiment, run in found.items()} for replicate, found in runs.items()
    }
    rows = {replicate: collect(wanted, found) for replicate, found in configs.items()} if wanted.arms else {}
    first = next(iter(configs.values()))
    return Report(
        out=Path(out or wanted.report),
        title=wanted.title,
        claim=wanted.claim,
        rows=merge(rows) if rows else [],
        configs=first,
        following=wanted.next,
        verdicts=verdicts(wanted.claims, rows),
        figures=[(each, [load_config(one, overrides) for one in each.experiments]) for each in wanted.pictures],
        repetitions=rows if len(rows) > 1 else {},
        replicates=wanted.replicates,
    )
