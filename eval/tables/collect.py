"""Collects the rows of a report: measured scores, the paper's figures, and the runs behind them.

In: a table or experiments that have been evaluated. Out: rows in the order of the table, the teacher first.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from randcond.data.inputs.catalogue import MissingInput
from randcond.eval.features.inception import inception_identity
from randcond.eval.images.drawing_cost import FILE as COST
from randcond.eval.images.identity import ABSENT
from randcond.eval.images.prompts import ALL, Prompts, choose_prompts
from randcond.eval.scores.metrics import find_metrics
from randcond.eval.scores.statistics import find_statistics, identity_of
from randcond.eval.tables.benchmarks import DRAWN_ALIKE, benchmarks
from randcond.eval.trained_runs import check_run
from randcond.launch.config.paths import eval_folder, resolve_path, student_folder, watched_folder
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Arm, Table
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_record
from randcond.launch.runtime.json_lines import whole_lines
from randcond.launch.runtime.this_command import command_of
from randcond.launch.urls import without_secrets
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint

# Settings that must be equal in all rows of a table; a row that differs gets a note.
COMPARABLE = (
    "protocol",
    "prompts_sha256",
    "splits_sha256",
    "seed",
    "sampler",
    "steps",
    "guidance",
    "resolution",
    "images",
    "batch",
    "dtype",
    "extractors",
    "statistics",
)
Scores = dict[str, dict[str, Any]]  # split -> score -> value


@dataclass(frozen=True)
class Row:
    """A row of a report: measured scores, the paper's figures, and the settings and folders behind them."""

    name: str
    scores: Scores = field(default_factory=dict)  # empty for a row that is quoted from the literature
    paper: Scores = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # p(t), weights, steps, seconds
    folder: Path | None = None  # of the evaluation
    run: Path | None = None  # of the training
    command: str = ""  # that makes the row
    spread: Scores = field(default_factory=dict)  # standard deviations over the repetitions, if there are several
    intervals: Scores = field(default_factory=dict)  # [low, high], of an evaluation
    cost: dict[str, Any] = field(default_factory=dict)  # of drawing (cost.json); {}: not measured
    teacher: str = ""  # the row of its teacher; "": not in the report


def collect(table: Table | None, configs: dict[str, Config], commands: Mapping[str, str] | None = None) -> list[Row]:
    """Returns the rows of a table; without a table, one row per experiment.

    `configs`: experiment -> its configuration. `commands`: experiment -> the command that evaluates it.
    Raises UserError naming an experiment that is not evaluated, or was evaluated with other settings than its
    configuration has now.
    """
    rows: list[Row] = []
    commands = {name: command_of("eval", name) for name in configs} if commands is None else commands
    teachers = teacher_rows(table, configs)
    for number, (name, by) in enumerate(teachers.values()):
        first, folder = configs[by], Path(configs[by].paths.reference)
        arm = table.teacher if table and number == 0 else Arm()  # the paper has one
        notes = [arm.note] if arm.note else []
        facts = {"weights": "raw", **_training_facts(resolve_path(first.teacher.path) / "training.json")}
        rows.append(_row(name, first, folder, facts, by_split(arm.paper), notes, commands[by], of_teacher=True))
    arms = {name: (arm.experiment, by_split(arm.paper), arm.note) for name, arm in table.arms.items()} if table else {}
    for name, (experiment, paper, note) in (arms or {name: (name, {}, "") for name in configs}).items():
        notes = [note] if note else []
        if not experiment:
            rows.append(Row(name, paper=paper, notes=notes))
            continue
        config = configs[experiment]
        facts = {"weights": config.eval.weights if config.trains else "raw"}
        if config.trains:
            check_run(config)
            trained = _training_facts(Path(config.paths.run) / "train.json")
            notes += [f"trained without: {left_out}" for left_out in trained.pop("left_out", [])]
            facts |= {"conditioning": config.conditioning.p, **trained}
        row = _row(name, config, eval_folder(config), facts, paper, notes, commands[experiment])
        if config.trains and config.paths.reference in teachers:
            row = replace(row, teacher=teachers[config.paths.reference][0])
        rows += [row, *_best(row, config)]
    _check_comparable(rows)
    return rows


def teacher_rows(table: Table | None, configs: Mapping[str, Config]) -> dict[str, tuple[str, str]]:
    """Returns the row of each teacher: folder of its evaluation -> (name, first experiment that evaluates it).

    Experiments without a table count as rows of their own names.
    """
    arms = {arm.experiment: name for name, arm in reversed(table.arms.items())} if table else {}
    found: dict[str, str] = {}
    for name, config in configs.items():
        if config.trains and "teacher" in config.eval.of:
            found.setdefault(config.paths.reference, name)
    if len(found) == 1:
        return {folder: ("teacher", by) for folder, by in found.items()}
    return {folder: (f"teacher of {arms.get(by, by)}", by) for folder, by in found.items()}


def _row(
    name: str,
    config: Config,
    folder: Path,
    facts: dict[str, Any],
    paper: Scores,
    notes: list[str],
    evaluate: str,
    of_teacher: bool = False,
) -> Row:
    path = folder / "scores.json"
    if not path.is_file():
        raise UserError(f"no scores at {path}: run {evaluate} first")
    scored = read_record(path, "protocol", "metrics", "splits", "notes")
    protocol = protocol_of(config.eval)
    prompts = choose_prompts(config)
    expected: dict[str, Any] = {"prompts_sha256": prompts.sha256, "splits_sha256": prompts.splits_sha256}
    expected |= {"seed": config.eval.seed}
    expected |= {"batch": config.eval.batch} if config.eval.batch is not None else {}
    expected |= {
        key: value
        for key in ("sampler", "steps", "guidance", "images")
        if (value := getattr(protocol, key)) is not None
    }
    expected |= {"dtype": config.teacher.dtype, "resolution": config.eval.resolution}
    is_teacher = of_teacher or not config.trains
    network = resolve_path(config.teacher.path) if is_teacher else student_folder(config, config.eval.weights)
    if network.is_dir():  # a hub id is not downloaded for a report
        expected["network"] = folder_fingerprint(network)
    remedy = "Evaluate it again, or report with the overrides it was evaluated with."
    check_matches(scored["protocol"], expected, f"the evaluation of {name}", remedy, ABSENT)
    _check_references(config, prompts, scored["protocol"], f"the evaluation of {name}", remedy)
    if missing := set(config.eval.metrics) - set(scored["metrics"]):
        raise UserError(f"{path}: has no scores of {', '.join(sorted(missing))} (eval.metrics). {remedy}")
    notes = notes + [f"{split}: {note}" for split, split_notes in scored["notes"].items() for note in split_notes]
    run = Path(config.paths.run) if config.trains and not of_teacher else None
    command = f"randcond run all {config.name}.yaml   # a file with the configuration below"
    splits = {**scored["splits"], ALL: {**scored["splits"][ALL], **scored.get("size", {})}}
    measured = scored.get("intervals", {})  # an older version computed none
    for bench in benchmarks(config, folder, scored["protocol"], name, evaluate, remedy):
        splits[ALL] |= bench.scores
        scored["protocol"][bench.name] = bench.protocol
        notes += bench.notes
        measured |= {split: {**measured.get(split, {}), **found} for split, found in bench.intervals.items()}
    cost = read_record(folder / COST, "batches", "device") if (folder / COST).is_file() else {}
    if any(cost.get(key) not in (None, scored["protocol"].get(key)) for key in DRAWN_ALIKE):
        cost = {}  # of other settings
    return Row(
        name, splits, paper, scored["protocol"], notes, facts, folder, run, command, intervals=measured, cost=cost
    )


def _check_references(config: Config, prompts: Prompts, protocol: dict[str, Any], what: str, remedy: str) -> None:
    """Raises UserError if the scores come from other statistics or another Inception than configured.

    Files that are missing are not checked, so that a report can be made on a machine that has only the scores.
    """
    expected = {}
    for metric in find_metrics(config.eval.metrics).values():
        for split in prompts.splits if metric.compares else ():
            with suppress(MissingInput):
                path = find_statistics(str(config.eval.statistics), split, str(metric.compares))
                expected[f"{split} {metric.compares}"] = identity_of(path)
    check_matches(protocol["statistics"], expected, f"{what} (eval.statistics)", remedy)
    if "inception" in protocol["extractors"] and Path(config.eval.inception).is_file():
        inception = {"inception": inception_identity(config.eval)}
        check_matches(protocol["extractors"], inception, f"{what} (eval.inception, eval.fid)", remedy)


def _best(row: Row, config: Config) -> list[Row]:
    """Returns the best evaluation during training as a row of its own: the paper reports the best step (supplement K).

    The best step may also be the last one. Returns [] if the run has no such evaluation. If it was scored with other
    settings than `row` (e.g. train.eval_size), returns [] and adds a note to `row` instead.
    """
    run = Path(config.paths.run)
    if not config.trains or not (run / "best.json").is_file():
        return []
    best = read_record(run / "best.json", "step", "weights", "score", "value")
    path = watched_folder(config, best["step"], best["weights"]) / "scores.json"
    note = f"best {best['score']} during training, at step {best['step']} ({best['weights']})"
    scored = read_record(path, "protocol", "splits") if path.is_file() else None
    if not scored or any(_setting(scored["protocol"], key) != _setting(row.protocol, key) for key in COMPARABLE):
        reason = "scored with other settings" if scored else f"{path} is missing"
        row.notes.append(f"{note}, {reason}: {best['value']:.4g}")
        return []
    size = read_record(row.folder / "scores.json").get("size", {}) if row.folder else {}
    scores = {**scored["splits"], ALL: {**scored["splits"][ALL], **size}}
    paper = {  # without figures of scores that are not computed during training, e.g. CompBench's
        split: {name: value for name, value in figures.items() if name in scores.get(split, {})}
        for split, figures in row.paper.items()
    }
    facts = {**row.facts, "weights": best["weights"], "steps": best["step"]}
    facts.pop("seconds", None)  # they are those of the whole training
    best_row = replace(
        row, name=f"{row.name}, best step", scores=scores, paper=paper, protocol=scored["protocol"], facts=facts
    )
    return [
        replace(best_row, notes=[note], folder=path.parent, run=None, intervals=scored.get("intervals", {}), cost={})
    ]


def _setting(protocol: dict[str, Any], key: str) -> Any:
    """Returns a setting of a protocol; its default if an older evaluation did not store it."""
    return protocol.get(key, ABSENT.get(key))


def by_split(paper: dict[str, Any]) -> Scores:
    """Returns the paper's figures by split. Figures without a split belong to "all"."""
    nested = {split: values for split, values in paper.items() if isinstance(values, dict)}
    flat = {score: value for score, value in paper.items() if not isinstance(value, dict)}
    return {**nested, **({"all": flat} if flat else {})}


def _training_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    known = without_secrets(read_record(path))  # an older version wrote whole URLs
    return {key: known[key] for key in ("steps", "seconds", "left_out", "machine") if key in known}


def _check_comparable(rows: list[Row]) -> None:
    """Adds a note to each row that was scored with other settings than the first measured row."""
    measured = [row for row in rows if row.scores]
    for row in measured[1:]:
        first = measured[0]
        differing = [key for key in COMPARABLE if _setting(row.protocol, key) != _setting(first.protocol, key)]
        for bench in ("compbench", "geneval", "geneval2"):
            scorers = [each.protocol.get(bench) for each in (row, first)]
            if all(scorers) and scorers[0] != scorers[1]:
                differing.append(bench)
        if differing:
            row.notes.append(f"scored with other settings than {first.name}: {', '.join(differing)}")


def curves(row: Row, names: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
    """Returns the values that a run logged: name -> [(step, value)]. Names that it never logged are left out."""
    logged: dict[str, list[tuple[int, float]]] = {}
    path = row.run / "metrics.jsonl" if row.run else None
    for _, values in whole_lines(path) if path else ():
        for name in names:
            if isinstance(values.get(name), (int, float)):
                logged.setdefault(name, []).append((values["step"], values[name]))
    return logged
