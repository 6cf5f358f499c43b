"""What a report is made of: the scores of every row beside the paper's figures, and the runs behind them.

In: a table or experiments, evaluated. Out: rows in the table's order, the teacher first.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from randcond.data.inputs.catalogue import MissingInput
from randcond.eval.compbench.run import compbench_prompts
from randcond.eval.images.prompts import ALL, Prompts, choose_prompts
from randcond.eval.scores.extractors import inception_identity
from randcond.eval.scores.metrics import find_metrics
from randcond.eval.scores.statistics import find_statistics, identity_of
from randcond.launch.config.paths import eval_folder, resolve_path, student_folder, watched_folder
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Arm, Table
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_json
from randcond.launch.runtime.json_lines import whole_lines
from randcond.model_zoo.fingerprint import folder_fingerprint

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
# Of a row's own protocol, what its CompBench images were drawn by, too.
DRAWN_ALIKE = ("network", "weights", "sampler", "steps", "guidance", "resolution", "seed", "batch", "dtype")
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

    Raises UserError naming an experiment that is not evaluated, or not as its configuration says now.
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
        raise UserError(f"no scores at {path}: run {_command(config)} first")
    scored = read_json(path)
    named = protocol_of(config.eval)
    prompts = choose_prompts(config)
    asked: dict[str, Any] = {"prompts_sha256": prompts.sha256, "splits_sha256": prompts.splits_sha256}
    asked |= {"seed": config.eval.seed, "batch": config.eval.batch}
    asked |= {
        key: value for key in ("sampler", "steps", "guidance", "images") if (value := getattr(named, key)) is not None
    }
    asked |= {"dtype": config.teacher.dtype, "resolution": config.eval.resolution}
    as_it_is = name == "teacher" or not config.trains
    network = resolve_path(config.teacher.path) if as_it_is else student_folder(config, config.eval.weights)
    if network.is_dir():  # a hub id is not looked up for a report
        asked["network"] = folder_fingerprint(network)
    remedy = "Evaluate it again, or report with the overrides it was evaluated with."
    check_matches(scored["protocol"], asked, f"the evaluation of {name}", remedy)
    _check_compared(config, prompts, scored["protocol"], f"the evaluation of {name}", remedy)
    if lacking := set(config.eval.metrics) - set(scored["metrics"]):
        raise UserError(f"{path}: no {', '.join(sorted(lacking))} (eval.metrics). {remedy}")
    notes = notes + [f"{split}: {note}" for split, said in scored["notes"].items() for note in said]
    run = Path(config.paths.run) if config.trains and name != "teacher" else None
    command = f"randcond run all {config.name}.yaml   # the configuration below"
    splits = {**scored["splits"], ALL: {**scored["splits"][ALL], **scored.get("size", {})}}
    bench = folder / "compbench" / "scores.json"
    if config.eval.compbench.lists:
        if not bench.is_file():
            raise UserError(f"no scores at {bench}: run {_command(config)} first")
        more = read_json(bench)
        same = {key: scored["protocol"][key] for key in DRAWN_ALIKE}
        for each in config.eval.compbench.categories:
            asked = {**same, "prompts_sha256": compbench_prompts(config.eval, each).sha256}
            check_matches(more["protocol"].get(each, {}), asked, f"CompBench ({each}) of {name}", remedy)
        splits = {**splits, ALL: {**splits[ALL], **more["scores"]}}
        scored["protocol"]["compbench"] = {
            **more["scorers"],
            **{
                key: {each: facts[key] for each, facts in more["protocol"].items()}
                for key in ("images", "prompts_sha256")
            },
        }
    return Row(name, splits, paper, scored["protocol"], notes, facts, folder, run, command)


def _check_compared(config: Config, prompts: Prompts, protocol: dict[str, Any], what: str, remedy: str) -> None:
    """Raises UserError where scores were taken with other statistics or another Inception than configured.

    Of what is not here any more nothing can be said: a report is also made where only the scores are.
    """
    wanted = {}
    for metric in find_metrics(config.eval.metrics).values():
        for split in prompts.splits if metric.compares else ():
            with suppress(MissingInput):
                path = find_statistics(str(config.eval.statistics), split, str(metric.compares))
                wanted[f"{split} {metric.compares}"] = identity_of(path)
    check_matches(protocol["statistics"], wanted, f"{what} (eval.statistics)", remedy)
    if "inception" in protocol["extractors"] and Path(config.eval.inception).is_file():
        mine = {"inception": inception_identity(config.eval)}
        check_matches(protocol["extractors"], mine, f"{what} (eval.inception, eval.fid)", remedy)


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
