"""What a report is made of: the scores of every row beside the paper's figures, and the runs behind them.

In: a table or experiments, evaluated. Out: rows in the table's order, the teacher first.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from randcond.data.files import check_same, read_json
from randcond.eval.compbench.run import compbench_prompts
from randcond.eval.prompts import ALL, choose_prompts
from randcond.launch.config import Config, eval_folder, resolve_path, student_folder, watched_folder
from randcond.launch.logs import whole_lines
from randcond.launch.protocols import protocol_of
from randcond.launch.table import Arm, Table
from randcond.model_zoo.teacher import folder_fingerprint

# Of a protocol, what must agree between rows that are compared.
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
    """A row of a report: what was measured, what the paper says, how it came about."""

    name: str
    scores: Scores = field(default_factory=dict)  # empty: quoted
    paper: Scores = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # p(t), weights, steps, seconds
    folder: Path | None = None  # of the evaluation
    run: Path | None = None  # of the training
    command: str = ""  # that makes it
    spread: Scores = field(default_factory=dict)  # standard deviations, where there are repetitions


def collect(table: Table | None, configs: dict[str, Config]) -> list[Row]:
    """The rows of a table, or of experiments on their own.

    Raises ValueError naming an experiment that is not evaluated, or not as its configuration says now.
    """
    rows = []
    first = next((each for each in configs.values() if "teacher" in each.eval.of and each.trains), None)
    if first:
        quoted = table.teacher if table else Arm()
        notes = [quoted.note] if quoted.note else []
        known = {"weights": "raw", **_training(resolve_path(first.teacher.path) / "training.json")}
        rows.append(_row("teacher", first, Path(first.paths.reference), known, by_split(quoted.paper), notes))
    arms = {name: (arm.experiment, by_split(arm.paper), arm.note) for name, arm in table.arms.items()} if table else {}
    for name, (experiment, paper, note) in (arms or {name: (name, {}, "") for name in configs}).items():
        notes = [note] if note else []
        if not experiment:
            rows.append(Row(name, paper=paper, notes=notes))
            continue
        config = configs[experiment]
        facts: dict[str, Any] = {"weights": config.eval.weights if config.trains else "raw"}
        if config.trains:
            trained = _training(Path(config.paths.run) / "train.json")
            notes += [f"trained without: {each}" for each in trained.pop("left_out", [])]
            facts |= {"conditioning": config.conditioning.p, **trained}
        row = _row(name, config, eval_folder(config), facts, paper, notes)
        rows += [row, *_best(row, config)]
    _check_comparable(rows)
    return rows


def _row(name: str, config: Config, folder: Path, facts: dict[str, Any], paper: Scores, notes: list[str]) -> Row:
    path = folder / "scores.json"
    if not path.is_file():
        raise ValueError(f"no scores at {path}: run {_command(config)} first")
    scored = read_json(path)
    named = protocol_of(config.eval)
    asked = {"prompts_sha256": choose_prompts(config).sha256, "seed": config.eval.seed, "batch": config.eval.batch}
    asked |= {
        key: value for key in ("sampler", "steps", "guidance", "images") if (value := getattr(named, key)) is not None
    }
    asked |= {"dtype": config.teacher.dtype, "resolution": config.eval.resolution}
    as_it_is = name == "teacher" or not config.trains
    network = resolve_path(config.teacher.path) if as_it_is else student_folder(config, config.eval.weights)
    if network.is_dir():  # a hub id is not looked up for a report
        asked["network"] = folder_fingerprint(network)
    remedy = "Evaluate it again, or report with the overrides it was evaluated with."
    check_same(scored["protocol"], asked, f"the evaluation of {name}", remedy)
    if lacking := set(config.eval.metrics) - set(scored["metrics"]):
        raise ValueError(f"{path}: no {', '.join(sorted(lacking))} (eval.metrics). {remedy}")
    notes = notes + [f"{split}: {note}" for split, said in scored["notes"].items() for note in said]
    run = Path(config.paths.run) if config.trains and name != "teacher" else None
    command = f"randcond run all {config.name}.yaml   # the configuration below"
    splits = {**scored["splits"], ALL: {**scored["splits"][ALL], **scored.get("size", {})}}
    bench = folder / "compbench" / "scores.json"
    if config.eval.compbench.lists:
        if not bench.is_file():
            raise ValueError(f"no scores at {bench}: run {_command(config)} first")
        more = read_json(bench)
        asked = {each: compbench_prompts(config.eval, each).sha256 for each in config.eval.compbench.categories}
        scored_on = {each: facts["prompts_sha256"] for each, facts in more["protocol"].items()}
        check_same(scored_on, asked, f"CompBench of {name}", remedy)
        splits = {**splits, ALL: {**splits[ALL], **more["scores"]}}
        scored["protocol"]["compbench"] = more["scorers"]
    return Row(name, splits, paper, scored["protocol"], notes, facts, folder, run, command)


def _command(config: Config) -> str:
    if config.replicate:
        return "`randcond run all` of its table"
    return f"`randcond run eval {config.name}`"


def _best(row: Row, config: Config) -> list[Row]:
    """The best of the evaluations while training as a row, which the paper reports (supplement K), be it the last one.

    Where it was scored otherwise (train.eval_size, other captions since), it is a note of the row.
    """
    run = Path(config.paths.run)
    if not config.trains or not (run / "best.json").is_file():
        return []
    best = read_json(run / "best.json")
    path = watched_folder(config, best["step"], best["weights"]) / "scores.json"
    said = f"best {best['score']} while training, at step {best['step']} ({best['weights']})"
    scored = read_json(path) if path.is_file() else None
    if not scored or any(scored["protocol"].get(key) != row.protocol.get(key) for key in COMPARABLE):
        why = "scored otherwise" if scored else f"{path} is gone"
        row.notes.append(f"{said}, {why}: {best['value']:.4g}")
        return []
    sizes = read_json(row.folder / "scores.json").get("size", {}) if row.folder else {}
    scores = {**scored["splits"], ALL: {**scored["splits"][ALL], **sizes}}
    paper = {  # CompBench, say, is not scored while training
        split: {name: value for name, value in figures.items() if name in scores.get(split, {})}
        for split, figures in row.paper.items()
    }
    facts = {**row.facts, "weights": best["weights"], "steps": best["step"]}
    facts.pop("seconds", None)  # of the whole training
    name = f"{row.name}, best step"
    found = replace(row, name=name, scores=scores, paper=paper, protocol=scored["protocol"], facts=facts)
    return [replace(found, notes=[said], folder=path.parent, run=None)]


def by_split(paper: dict[str, Any]) -> Scores:
    """The paper's figures by split; those that name none are of all captions."""
    nested = {split: values for split, values in paper.items() if isinstance(values, dict)}
    flat = {score: value for score, value in paper.items() if not isinstance(value, dict)}
    return {**nested, **({"all": flat} if flat else {})}


def _training(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    known = read_json(path)
    return {key: known[key] for key in ("steps", "seconds", "left_out") if key in known}


def _check_comparable(rows: list[Row]) -> None:
    """Rows that were scored differently don't belong in one table, unless the table says so by its experiments."""
    measured = [row for row in rows if row.scores]
    for row in measured[1:]:
        mine = {key: row.protocol.get(key) for key in COMPARABLE}
        differing = [key for key in COMPARABLE if mine[key] != measured[0].protocol.get(key)]
        scorers = [each.protocol.get("compbench") for each in (row, measured[0])]
        if all(scorers) and scorers[0] != scorers[1]:
            differing.append("compbench")
        if differing:
            row.notes.append(f"scored otherwise than {measured[0].name}: {', '.join(differing)}")


def curves(row: Row, names: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
    """Logged values of a run by name: [(step, value)]; empty where it logged none."""
    found: dict[str, list[tuple[int, float]]] = {}
    path = row.run / "metrics.jsonl" if row.run else None
    for _, values in whole_lines(path) if path else ():
        for name in names:
            if isinstance(values.get(name), (int, float)):
                found.setdefault(name, []).append((values["step"], values[name]))
    return found
