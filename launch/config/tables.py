"""Tables: experiments whose scores stand in one report, one YAML each (launch/tables/*.yaml, by folder).

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

OWN_FOLDERS = ("paths", "paths.cache", "paths.reference", "paths.run")  # that repetitions must not share


@dataclass(frozen=True, config=STRICT)
class Arm:
    """A row of a table: an experiment, or figures that are quoted."""

    experiment: str = ""  # empty: a row of the literature, quoted and not run
    paper: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # score or {split: {score}} -> the paper's figure(s)
    note: str = ""


@dataclass(frozen=True, config=STRICT)
class Claim:
    """Something the paper says that a table's repetitions can show or not: a sum that is above -margin."""

    text: str
    contrast: dict[str, float]  # row -> weight
    score: str = "digit_accuracy"
    split: str = "all"
    margin: float = 0.0  # how far below 0 the sum may be: for "no worse than"
    afterwards: bool = False  # put to the runs when these were known: its interval does not cover that


@dataclass(frozen=True, config=STRICT)
class Picture:
    """A picture that a report draws itself, out of experiments' configurations: no training is needed."""

    kind: Literal["probabilities", "regenerated", "overlap"]  # Figure A, Figure 3, Figure 5
    experiments: list[str]  # probabilities: one each; else the one whose teacher and captions are taken
    title: str
    timesteps: list[int] = dataclasses.field(default_factory=list)
    captions: int = 8  # how many are shown; overlap: images of each of two captions
    read: int = 0  # regenerated, digits: how many pairs are drawn and read beside those shown


@dataclass(frozen=True, config=STRICT)
class Table:
    """Experiments whose scores stand in one report."""

    name: str
    title: str
    claim: str  # what the table shows, in a sentence or two
    takes: str  # how long it takes, on what
    report: str  # the folder of its report
    arms: dict[str, Arm]  # row name -> what stands in it
    next: list[str] = dataclasses.field(default_factory=list)  # commands to try after it
    teacher: Arm = dataclasses.field(default_factory=Arm)  # the paper's figures of the teacher
    replicates: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # name -> its overrides of every row
    claims: list[Claim] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        # ValueError, which pydantic collects: `parse` makes a UserError of it that names the key.
        for claim in self.claims:
            if unknown := set(claim.contrast) - set(self.arms):
                raise ValueError(f"claims: {claim.text!r}: no row {sorted(unknown)}")

    @property
    def experiments(self) -> list[str]:
        """The experiments of its rows, each once, in their order."""
        return list(dict.fromkeys(arm.experiment for arm in self.arms.values() if arm.experiment))


class Run(NamedTuple):
    """One experiment of a table, in one of its repetitions."""

    experiment: str
    overrides: list[str]
    config: Config


def load_table(name: str) -> Table:
    """A table by name; a row may be just its experiment. Raises UserError naming a wrong key."""
    path = find_table(name)
    data = {"name": name, **compose(path, configuration.TABLES / "base")}
    data["report"] = str(data.get("report", "")).replace("{name}", name)
    rows = data.get("arms") or {}
    data["arms"] = {row: {"experiment": arm} if isinstance(arm, str) else arm for row, arm in rows.items()}
    return parse(Table, data, str(path))


def load_runs(name: str, overrides: Sequence[str] = (), only: str = "") -> dict[str, dict[str, Run]]:
    """Every run of a table, or of `only` one of its experiments: repetition ("": it has none) -> experiment -> run.

    Raises UserError naming an override of a key in which the rows differ: it would make them one.
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
    """Every run of a table or of a row of it (table1-row5), repetition by repetition, or an experiment's one."""
    table, only = (name, "") if name in table_names() else table_row(name) or ("", "")
    if not table:
        return [Run(name, overrides, load_config(name, overrides))]
    return [run for runs in load_runs(table, overrides, only).values() for run in runs.values()]


def out_folder(name: str, runs: list[Run]) -> Path:
    """Where what belongs to a whole table, or to one experiment, is written."""
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
                f"{key} is what the arms of {wanted.name} differ in; override it for one of its experiments: "
                f"{', '.join(wanted.experiments)}"
            )
        if said and key in OWN_FOLDERS and "{replicate}" not in override:
            raise UserError(f"{key}: the repetitions of {wanted.name} need one each; write {{replicate}} in it")
        if any(each == key or each.startswith(f"{key}.") for each in said):
            raise UserError(f"{key} is what the repetitions of {wanted.name} differ in")


def leaves(data: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys; p_args, whose keys are its own, as one."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and key != "p_args":
            found |= leaves(value, f"{above}{key}.")
        else:
            found[above + key] = value
    return found
