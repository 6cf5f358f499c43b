"""The report of an experiment or a table: `python -m randcond.eval.report NAME [key=value ...]`.

In: scores.json of every arm and of the teacher. Out: report.json, report.md, report.html (self-contained) and
contact_sheet.png: teacher and arms side by side, same captions, same seeds.
"""

import base64
import html
import os
import sys
from pathlib import Path
from typing import Any

from randcond.data.files import check_same, read_json, write_json, write_text
from randcond.data.ranks import rank
from randcond.eval.contact_sheet import draw_sheet
from randcond.eval.generate import choose_prompts, protocol
from randcond.launch.config import (
    Config,
    eval_folder,
    load_arms,
    load_config,
    load_table,
    resolve_path,
    table_names,
)

Arm = dict[str, Any]
VARIES = ("network", "threads")  # of a protocol, between arms that may be compared


def collect(configs: dict[str, Config]) -> dict[str, Arm]:
    """Every arm's scores, the teacher first; raises ValueError naming an arm that is not evaluated."""
    first = next(iter(configs.values()))
    arms: dict[str, Arm] = {"teacher": _teacher(first)}
    for name, config in configs.items():
        run = Path(config.paths.run)
        scores = _scores(eval_folder(config) / "scores.json", config.name)
        trained = read_json(run / "train.json")
        arms[name] = _arm(scores, trained["steps"], trained["seconds"], config.conditioning.p, config.eval.weights)
        arms[name]["left_out"] = trained["left_out"]
    for name, arm in arms.items():
        asked = {key: value for key, value in protocol(configs.get(name, first), "").items() if key not in VARIES}
        remedy = "Evaluate it again, or report with the overrides it was evaluated with."
        check_same(arm["protocol"], asked, f"the evaluation of {name}", remedy)
    return arms


def _teacher(config: Config) -> Arm:
    scores = _scores(Path(config.paths.reference) / "scores.json", config.name)
    facts = resolve_path(config.teacher.path) / "training.json"
    trained = read_json(facts) if facts.is_file() else {}
    return _arm(scores, trained.get("steps"), trained.get("seconds"), None, "raw")


def _scores(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no scores at {path}: run `randcond run eval {name}` first")
    return read_json(path)


def _arm(scores: dict[str, Any], steps: int | None, seconds: float | None, p: str | None, weights: str) -> Arm:
    splits = scores["splits"]
    arm: Arm = {"conditioning": p, "weights": weights, "steps": steps, "seconds": seconds}
    for score in (
        "digit_accuracy",
        "colour_accuracy",
        "background_accuracy",
        "frechet_judge",
        "images",
        "digits_drawn",
    ):
        arm[score] = {split: values[score] for split, values in splits.items()}
    arm["protocol"] = scores["protocol"]
    return arm


def markdown_table(arms: dict[str, Arm]) -> str:
    """The scores as a Markdown table, a row per arm."""
    splits = list(next(iter(arms.values()))["digit_accuracy"])
    head = ["", "p(t)", "weights", "steps", "seconds", *(f"digit right, {split}" for split in splits)]
    head += [f"colour right, {split}" for split in splits] + [f"Fréchet (judge), {split}" for split in splits]
    rows = [head, ["---"] * len(head)]
    for name, arm in arms.items():
        row = [name, arm["conditioning"] or "", arm["weights"], _plain(arm["steps"]), _plain(arm["seconds"])]
        row += [f"{arm['digit_accuracy'][split]:.1%}" for split in splits]
        row += [f"{arm['colour_accuracy'][split]:.1%}" for split in splits]
        row += [f"{arm['frechet_judge'][split]:.0f}" for split in splits]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def drawn_instead(arms: dict[str, Arm], words: list[str]) -> list[str]:
    """What each arm drew when it was asked for what had no image."""
    lines = []
    for name, arm in arms.items():
        if "unseen" in arm["digits_drawn"]:
            total = arm["images"]["unseen"]
            drawn = ", ".join(f"{digit} {n / total:.0%}" for digit, n in arm["digits_drawn"]["unseen"].items())
            lines.append(f"asked for {'/'.join(words)}, **{name}** drew: {drawn}")
    return lines


def protocol_line(arm: Arm) -> str:
    """Everything a score depends on, in a line."""
    return ", ".join(f"{key} {value}" for key, value in arm["protocol"].items() if key not in ("network", "splits"))


def write_report(out: Path, title: str, claim: str, configs: dict[str, Config], following: list[str]) -> None:
    """Writes the four files into `out` and prints the table."""
    arms = collect(configs)
    config = next(iter(configs.values()))
    prompts = choose_prompts(config)
    folders = {"teacher": Path(config.paths.reference)}
    folders |= {name: eval_folder(each) for name, each in configs.items()}
    sheet = out / "contact_sheet.png"
    draw_sheet(sheet, prompts, folders, config.eval.batch)
    table, instead = markdown_table(arms), drawn_instead(arms, config.cache.exclude)
    missing = [f"**{name}** trained without: {each}" for name, arm in arms.items() for each in arm.get("left_out", [])]
    instead += missing
    notes = [
        "Digit, colour and background are read by the embedded judge, a classifier trained on real handwriting. "
        "The Fréchet distance is taken in the judge's features (not FID), to held-out handwriting of the same digits.",
        f"Protocol: {protocol_line(next(iter(arms.values())))}.",
    ]
    body = [f"# {title}", claim, table, *instead, f"![same captions, same seeds]({sheet.name})", *notes]
    write_text(out / "report.md", "\n\n".join(body) + "\n")
    write_text(out / "report.html", _page(title, claim, arms, instead, sheet, notes))
    write_json(out / "report.json", {"title": title, "arms": arms})
    print(f"\n{title}\n")
    print(_console_table(table))
    print("\n" + "\n".join(line.replace("**", "") for line in instead))
    print(f"\nthe picture   {sheet}\nthe report    {out / 'report.html'} (also report.md, report.json)")
    if following:
        print("try next      " + "\n              ".join(following))


def _console_table(markdown: str) -> str:
    """The Markdown table with its columns aligned."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    del rows[1]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _page(title: str, claim: str, arms: dict[str, Arm], instead: list[str], sheet: Path, notes: list[str]) -> str:
    """One self-contained HTML page: nothing is loaded from anywhere."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown_table(arms).splitlines()]
    cells = "".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in [("th", rows[0]), *(("td", row) for row in rows[2:])]
    )
    said = "".join(f"<li>{html.escape(line).replace('**', '')}</li>" for line in instead)
    small = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in notes)
    picture = base64.b64encode(sheet.read_bytes()).decode()
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .7rem;border-bottom:1px solid #ccc;"
        "text-align:right}td:first-child{text-align:left;font-weight:600}img{max-width:100%}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head><body><h1>{html.escape(title)}</h1><p>{html.escape(claim)}</p>"
        f'<img alt="same captions, same seeds" src="data:image/png;base64,{picture}">'
        f"<table>{cells}</table><ul>{said}</ul>{small}</body></html>\n"
    )


def main(argv: list[str] | None = None) -> None:
    """Reports a table or a single experiment; exits 2 with one line on the user's mistake."""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank")]
    if not words or words[0].startswith("-"):
        print("usage: python -m randcond.eval.report EXPERIMENT|TABLE [section.key=value ...]")
        return
    name, overrides = words[0], words[1:]
    if rank() != 0:
        return
    try:
        if name in table_names():
            table = load_table(name)
            loaded = load_arms(name, overrides)
            configs = {arm: loaded[experiment] for arm, experiment in table.arms.items()}
            write_report(Path(table.report), table.title, table.claim, configs, table.next)
        else:
            config = load_config(name, overrides)
            claim = f"Student {config.student.rule}, p(t) {config.conditioning.p}, {config.train.steps} steps."
            write_report(Path(config.paths.run), config.name, claim, {config.name: config}, [])
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("RANDCOND_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
