"""Tables: several experiments whose scores are in one report. Each table is a YAML file in launch/tables.

In: a table's name. Out: its rows with the paper's figures, its repetitions, its claims, its pictures.
Imports no torch.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic.dataclasses import dataclass

from randcond.launch.config import experiments as configuration
from randcond.launch.config.experiments import find_table, load_config, table_names, table_row, to_dict
from randcond.launch.config.parsing import parse
from randcond.launch.config.sections import STRICT, Config
from randcond.launch.config.strict_yaml import compose
from randcond.launch.errors import UserError

OWN_FOLDERS = ("paths", "paths.cache", "paths.reference", "paths.run")  # repetitions must not share these


@dataclass(frozen=True, config=STRICT)
class Arm:
    """A row of a table: an experiment, or figures quoted from the paper."""

    experiment: str = ""  # empty: the row is quoted and not run
    paper: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # score or {split: {score}} -> the paper's figure(s)
    note: str = ""


@dataclass(frozen=True, config=STRICT)
class Claim:
    """A statement of the paper, or one of ours, that a table's repetitions can confirm or not.

    It holds if the weighted sum of the rows' scores is above -margin.
    """

    text: str
    contrast: dict[str, float]  # row -> weight
    score: str = "digit_accuracy"
    split: str = "all"
    margin: float = 0.0  # how far below 0 the sum may be, for "no worse than"
    afterwards: bool = False  # written after the results were known; its interval does not account for that
    ours: bool = False  # no statement of the paper; a table's file says so once, for all its claims


@dataclass(frozen=True, config=STRICT)
class Picture:
    """A picture that a report draws from experiments' configurations. No training is needed."""

    kind: Literal["probabilities", "regenerated", "overlap"]  # Figure A, Figure 3, Figure 5
    experiments: list[str]  # probabilities: one per curve; else one, whose teacher and captions are used
    title: str
    timesteps: list[int] = dataclasses.field(default_factory=list)
    captions: int = 8  # captions shown; overlap: images of each of two captions
    read: int = 0  # regenerated, digits: pairs that are drawn and classified in addition to those shown


@dataclass(frozen=True, config=STRICT)
class Table:
    """Several experiments whose scores are in one report."""

    name: str
    title: str
    claim: str  # what the table shows, in a sentence or two
    takes: str  # how long it takes, and on which machine
    report: str  # the folder of its report
    arms: dict[str, Arm]  # row name -> row
    next: list[str] = dataclasses.field(default_factory=list)  # commands to try after it
    teacher: Arm = dataclasses.field(default_factory=Arm)  # the paper's figures for the teacher
    replicates: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # name -> overrides of every row
    claims: list[Claim] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        # ValueError, because pydantic collects it; `parse` turns it into a UserError that names the key.
        for claim in self.claims:
            if unknown := set(claim.contrast) - set(self.arms):
                raise ValueError(f"claims: {claim.text!r}: unknown rows {sorted(unknown)}")

    @property
    def experiments(self) -> list[str]:
        """The experiments of its rows, without duplicates, in the order of the rows."""
        return list(dict.fromkeys(arm.experiment for arm in self.arms.values() if arm.experiment))


class Run(NamedTuple):
    """One experiment of a table, in one of its repetitions."""

    experiment: str
    overrides: list[str]
    config: Config


def load_table(name: str) -> Table:
    """Returns a table by name. In the file, a row may be only its experiment. Raises UserError naming a wrong key."""
    path = find_table(name)
    data = {"name": name, **compose(path, configuration.TABLES / "base")}
    data["report"] = str(data.get("report", "")).replace("{name}", name)
    if data.pop("ours", False):
        data["claims"] = [{**claim, "ours": True} for claim in data.get("claims", [])]
    rows = data.get("arms") or {}
    data["arms"] = {row: {"experiment": arm} if isinstance(arm, str) else arm for row, arm in rows.items()}
    return parse(Table, data, str(path))


def load_runs(name: str, overrides: Sequence[str] = (), only: str = "") -> dict[str, dict[str, Run]]:
    """Returns every run of a table, or of the experiment `only`: repetition -> experiment -> run.

    A table without repetitions has one, named "". Raises UserError naming an override of a key in which the rows or
    the repetitions differ: the override would make them equal.
    """
    wanted = load_table(name)
    experiments = [only] if only else wanted.experiments
    _check_overrides(wanted, experiments, overrides)
    runs = {}
    for replicate, own in (wanted.replicates or {"": []}).items():
        words = [*([f"replicate={replicate}"] if replicate else []), *own, *overrides]
        runs[replicate] = {each: Run(each, words, load_config(each, words)) for each in experiments}
    return runs


def runs_of(name: str, overrides: list[str]) -> list[Run]:
    """Returns every run of a table or of one row (table1-row5), by repetition. An experiment has one run."""
    table, only = (name, "") if name in table_names() else table_row(name) or ("", "")
    if not table:
        return [Run(name, overrides, load_config(name, overrides))]
    return [run for runs in load_runs(table, overrides, only).values() for run in runs.values()]


def out_folder(name: str, runs: list[Run]) -> Path:
    """Returns the folder for files that belong to a whole table, or to one experiment."""
    return Path(load_table(name).report if name in table_names() else runs[0].config.home)


def _check_overrides(wanted: Table, experiments: list[str], overrides: Sequence[str]) -> None:
    settings = [leaves(to_dict(load_config(experiment))) for experiment in experiments]
    said = [word.partition("=")[0] for own in wanted.replicates.values() for word in own]
    for override in overrides:
        key = override.partition("=")[0]
        if key in ("name", "replicate"):
            raise UserError(f"{key}: each row of {wanted.name} has its own")
        below = [each for each in (settings[0] if settings else ()) if each == key or each.startswith(f"{key}.")]
        if any(row[each] != settings[0][each] for row in settings for each in below):
            raise UserError(
                f"{key}: the rows of {wanted.name} differ in it; override it for one of its experiments: "
                f"{', '.join(wanted.experiments)}"
            )
        if said and key in OWN_FOLDERS and "{replicate}" not in override:
            raise UserError(f"{key}: each repetition of {wanted.name} needs its own folder; add {{replicate}} to it")
        if any(each == key or each.startswith(f"{key}.") for each in said):
            raise UserError(f"{key}: the repetitions of {wanted.name} differ in it; it can't be overridden")


def leaves(data: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Returns nested settings by their dotted keys. `p_args` is one setting, because its keys are free."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and key != "p_args":
            found |= leaves(value, f"{above}{key}.")
        else:
            found[above + key] = value
    return found
