"""Writes the report of experiments or of a table: `randcond report NAME ... [key=value ...]`.

In: scores.json of every row and of the teacher. Out: report.json, report.md, report.html (self-contained) and
contact_sheet.png, which shows the images of all rows side by side: same captions, same seeds.
"""

from pathlib import Path
from typing import Any

from randcond.data.contact_sheet import Images, draw_comparison
from randcond.eval.images.generate import load_shown
from randcond.eval.images.prompts import Prompts, choose_prompts, grid_prompts
from randcond.eval.pictures.method_figures import draw_picture
from randcond.eval.report.page import PageParts, render_page
from randcond.eval.report.page_pictures import Comparison, comparison
from randcond.eval.report.records import Report
from randcond.eval.report.result_plots import plot_repetitions
from randcond.eval.tables.collect import Row, collect
from randcond.eval.tables.costs import cost_remarks, cost_table
from randcond.eval.tables.noise import differences_to_best, interval_remarks, noise_remarks, unpaired
from randcond.eval.tables.protocol_words import protocol_in_words
from randcond.eval.tables.repetitions import claim_lines, merge, verdicts
from randcond.eval.tables.table import as_markdown, as_text, spread_over_subsets, table
from randcond.launch.config.experiments import load_config, shown_dict, table_names
from randcond.launch.config.tables import load_runs, load_table
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json, write_text
from randcond.launch.runtime.this_command import command_of

GRID_COLUMNS = 12


def digits_drawn_lines(rows: list[Row], words: list[str]) -> list[str]:
    """Returns for each row of the digits world which digits it drew for the captions of the excluded words."""
    lines = []
    for row in rows:
        unseen = row.scores.get("unseen", {})
        if drawn := unseen.get("digits_drawn"):
            shares = ", ".join(f"{digit} {n / unseen['images']:.0%}" for digit, n in drawn.items())
            lines.append(f"asked for {'/'.join(words)}, **{row.name}** drew: {shares}")
    return lines


def write_report(report: Report) -> None:
    """Writes the files of the report into its folder and prints the tables."""
    rows, out = report.rows, report.out
    lines = table(rows) if rows else []
    sheets, compared = _contact_sheets(report)
    pictures = {**sheets, **_repetition_plots(report), **_method_figures(report)}
    remarks = [] if report.repetitions else digits_drawn_lines(rows, _excluded(report))
    if report.repetitions:
        names = ", ".join(report.repetitions)
        remarks.append(
            f"Scores are the mean ± standard deviation of {len(report.repetitions)} repetitions ({names}); protocol, "
            f"pictures and curves are {next(iter(report.repetitions))}'s, report.json holds every one's. A claim's "
            f"interval is of the rows' difference, repetition by repetition (Student's t; of shares, no narrower than "
            f"their number of images allows)."
        )
    rows_compared = [] if report.repetitions else rows
    differences = differences_to_best(rows_compared)
    remarks += interval_remarks(rows) + noise_remarks(differences, unpaired(rows_compared)) + cost_remarks(rows)
    remarks += note_lines(rows)
    notes = _notes(rows)
    images = [f"![{title}]({path.name})" for title, path in pictures.items()]
    claims, costs = claim_lines(report.verdicts), cost_table(rows)
    further = [cells for cells in (claims, costs) if cells]
    tables = [lines, *further] if lines else further
    body = [f"# {report.title}", report.claim, *map(as_markdown, tables), *remarks, *images, *notes]
    write_text(out / "report.md", "\n\n".join(body) + "\n")
    facts = {**_report_facts(report), "differences": [each.facts() for each in differences]}
    write_json(out / "report.json", facts)
    parts = PageParts(lines, further, remarks, pictures, notes, facts, compared)
    write_text(out / "report.html", render_page(report, parts))
    print(f"\n{report.title}\n")
    for cells in tables:
        print(as_text(cells) + "\n")
    print("\n" + "\n".join(line.replace("**", "") for line in remarks))
    print("\n".join(notes))
    for path in pictures.values():
        print(f"\nthe picture   {path}", end="")
    print(f"\nthe report    {out / 'report.html'} (also report.md, report.json)")
    if report.next_commands:
        print("try next      " + "\n              ".join(report.next_commands))


def note_lines(rows: list[Row]) -> list[str]:
    """Returns the notes of rows, each once: with the names of the rows and of the splits that it is about."""
    places: dict[str, dict[str, list[str]]] = {}  # note -> row -> splits
    for row in rows:
        for note in row.notes:
            split, colon, rest = note.partition(": ")
            of_split = bool(colon) and split in row.scores
            places.setdefault(rest if of_split else note, {}).setdefault(row.name, []).extend([split] * of_split)
    lines = []
    for note, splits_by_row in places.items():
        names_by_splits: dict[tuple[str, ...], list[str]] = {}
        for name, splits in splits_by_row.items():
            names_by_splits.setdefault(tuple(splits), []).append(f"**{name}**")
        for of_splits, names in names_by_splits.items():
            lines.append(": ".join([", ".join(names), *([", ".join(of_splits)] if of_splits else []), note]))
    return lines


def _excluded(report: Report) -> list[str]:
    return next(iter(report.configs.values())).cache.exclude if report.configs else []


def _report_facts(report: Report) -> dict[str, Any]:
    """Returns the content of report.json."""
    arms = {row.name: _row_facts(row) for row in report.rows}
    facts: dict[str, Any] = {"title": report.title, "arms": arms}
    facts["configurations"] = {name: shown_dict(config) for name, config in report.configs.items()}
    if report.repetitions:
        facts["replicates"] = report.replicates
        facts["repetitions"] = {
            name: {row.name: {"scores": row.scores, "protocol": row.protocol} for row in rows}
            for name, rows in report.repetitions.items()
        }
        facts["claims"] = [verdict.facts() for verdict in report.verdicts]
    return facts


def _row_facts(row: Row) -> dict[str, Any]:
    """Returns a row for report.json: its facts, score -> split -> value, the paper's figures, notes, protocol."""
    names = list(dict.fromkeys(name for scores in row.scores.values() for name in scores))
    by_score = {name: {split: scores[name] for split, scores in row.scores.items() if name in scores} for name in names}
    known = {"paper": row.paper, "notes": row.notes, "protocol": row.protocol}
    measured = {"intervals": row.intervals, "cost": row.cost}
    return {**row.facts, **by_score, **known, **{key: value for key, value in measured.items() if value}}


def _repetition_plots(report: Report) -> dict[str, Path]:
    """Plots the scores of every repetition that the claims are about; returns title -> file."""
    scores = list(dict.fromkeys((verdict.claim.score, verdict.claim.split) for verdict in report.verdicts))
    if not scores:
        return {}
    plot_repetitions(report.out / "repetitions.png", report.repetitions, scores)
    return {"every repetition, and their mean": report.out / "repetitions.png"}


def _method_figures(report: Report) -> dict[str, Path]:
    """Draws the pictures that need configurations only; returns title -> file."""
    return {
        picture.title: draw_picture(picture, configs, report.out / f"{number}-{picture.kind}.png")
        for number, (picture, configs) in enumerate(report.figures, 1)
    }


def _contact_sheets(report: Report) -> tuple[dict[str, Path], Comparison | None]:
    """Draws the contact sheet, and a sheet of the captions of `eval.grid` if there are any.

    Returns title -> file, and the images of the first sheet for the page. A sheet shows only rows that drew the same
    captions with the same seeds as the first row.
    """
    if not report.configs:
        return {}, None
    configs = list(report.configs.values())
    config = next((config for config in configs if config.trains), configs[0])
    first = next((row for row in report.rows if row.folder), None)
    same = ("prompts_sha256", "seed")
    drawn = [row for row in report.rows if row.folder and first and _settings(row, same) == _settings(first, same)]
    pictures: dict[str, Path] = {}
    compared: Comparison | None = None
    prompts = choose_prompts(config)
    bands = dict(sorted(prompts.shown(config.eval.shown).items(), reverse=True))  # unseen first
    sheets = {"same captions, same seeds": ("contact_sheet.png", prompts, bands, "")}
    if config.eval.grid:
        grid = grid_prompts(config)
        numbers = list(range(len(grid.captions)))
        parts = [numbers[start : start + GRID_COLUMNS] for start in range(0, len(numbers), GRID_COLUMNS)]
        bands = {f"{part[0] + 1} - {part[-1] + 1}": part for part in parts}
        sheets["the captions of eval.grid, same seeds"] = ("grid.png", grid, bands, "grid")
    for title, (name, prompts, bands, subfolder) in sheets.items():
        arms = {row.name: _shown(row, prompts, subfolder) for row in drawn if row.folder}
        arms = {name: images for name, images in arms.items() if images}
        if arms and any(bands.values()):
            draw_comparison(report.out / name, prompts.captions, bands, arms)
            pictures[title] = report.out / name
            compared = compared or comparison(prompts, bands, arms)
    return pictures, compared


def _settings(row: Row, keys: tuple[str, ...]) -> list[Any]:
    return [row.protocol.get(key) for key in keys]


def _shown(row: Row, prompts: Prompts, subfolder: str) -> Images:
    assert row.folder is not None
    return load_shown(row.folder / subfolder, len(prompts.captions), row.protocol["batch"])


def _notes(rows: list[Row]) -> list[str]:
    measured = [row for row in rows if row.scores]
    splits = [scores for row in measured for scores in row.scores.values()]
    notes = []
    if any("frechet_judge" in scores for row in measured for scores in row.scores.values()):
        notes.append(
            "Digit, colour and background are read by the embedded judge, a classifier trained on real handwriting. "
            "The Fréchet distance is taken in the judge's features (not FID), to held-out handwriting of the same "
            "digits; less is better."
        )
    if measured and all(scores.keys() <= {"images"} for scores in splits):
        notes.append("There are no scores, because eval.metrics names none. The images are drawn.")
    if any("unseen" in row.scores for row in measured):
        notes.append(
            "Seen and unseen: captions of concepts with and without latents in the cache. p(t): the probability that a "
            "caption is replaced. ema and raw: the weights that were evaluated."
        )
    kid_sizes = sorted({scores["kid_subset"] for scores in splits if spread_over_subsets(scores, "kid") is not None})
    without = [scores for row in measured for scores in _without_interval(row, "is")]
    spreads = ["of IS over its 10 splits"] if any(spread_over_subsets(scores, "is") for scores in without) else []
    spreads += [f"of KID over its 100 subsets of {' or '.join(map(str, kid_sizes))} images"] if kid_sizes else []
    if spreads and not any(row.spread for row in measured):
        notes.append(f"± is the standard deviation {', '.join(spreads)}.")
    names_by_line: dict[str, list[str]] = {}
    for row in measured:
        names_by_line.setdefault(protocol_in_words(row.protocol), []).append(row.name)
    notes += [f"Protocol of {', '.join(names)}: {line}." for line, names in names_by_line.items()]
    return notes


def _without_interval(row: Row, score: str) -> list[dict[str, Any]]:
    """Returns the scores of the splits in which a score has no interval."""
    return [scores for split, scores in row.scores.items() if score not in row.intervals.get(split, {})]


def load_report(names: list[str], overrides: list[str], out: str = "") -> Report:
    """Collects the report of one table, or of experiments; raises UserError naming what is not evaluated.

    `overrides`: `section.key=value`, applied to every experiment. `out`: the folder of the report; "": its default.
    """
    if len(names) == 1 and names[0] in table_names():
        return _table_report(names[0], overrides, out)
    if tables := set(names) & set(table_names()):
        raise UserError(f"{sorted(tables)[0]} is a table: report it alone, or name experiments only")
    loaded = [load_config(name, overrides) for name in names]
    configs = {config.name: config for config in loaded}
    if len(configs) < len(names):
        raise UserError(f"two of the experiments {', '.join(names)} have the same name; rename one of them")
    if len(names) > 1 and not out:
        raise UserError("--out FOLDER: is missing; a report of several experiments needs a folder")
    descriptions = [
        f"{config.name}: student {config.student.rule}, p(t) {config.conditioning.p}, {config.train.steps} steps."
        if config.trains
        else f"{config.name}: {config.teacher.path}, evaluated without training."
        for config in loaded
    ]
    title = ", ".join(configs)
    commands = {config.name: command_of("eval", name, *overrides) for config, name in zip(loaded, names, strict=True)}
    rows = collect(None, configs, commands)
    return Report(Path(out or loaded[0].home), title, " ".join(descriptions), rows, configs, [])


def _table_report(name: str, overrides: list[str], out: str) -> Report:
    spec, runs = load_table(name), load_runs(name, overrides)
    configs, rows = {}, {}
    for repetition, its_runs in runs.items():
        configs[repetition] = {experiment: run.config for experiment, run in its_runs.items()}
        commands = {experiment: command_of("eval", experiment, *run.overrides) for experiment, run in its_runs.items()}
        if spec.arms:
            rows[repetition] = collect(spec, configs[repetition], commands)
    figures = [
        (picture, [load_config(experiment, overrides) for experiment in picture.experiments])
        for picture in spec.pictures
    ]
    return Report(
        out=Path(out or spec.report),
        title=spec.title,
        claim=spec.claim,
        rows=merge(rows) if rows else [],
        configs=next(iter(configs.values())),
        next_commands=spec.next,
        verdicts=verdicts(spec.claims, rows),
        figures=figures,
        repetitions=rows if len(rows) > 1 else {},
        replicates=spec.replicates,
    )
