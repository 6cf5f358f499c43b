"""Resolves an experiment: one strict YAML file over its bases, and overrides. Errors name the key.

In: an experiment's name or file, and `key=value` overrides. Out: a frozen `Config` (launch/config/sections.py).
Imports no torch, so that a login node reads a configuration in a fraction of a second.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from randcond.launch.config.parsing import near, parse, read_override, suggest
from randcond.launch.config.paths import EXPERIMENTS, TABLES
from randcond.launch.config.sections import Config
from randcond.launch.config.strict_yaml import compose, merge, yaml_files
from randcond.launch.errors import UserError
from randcond.launch.urls import shown_settings


def experiment_names() -> list[str]:
    """Returns the names of the experiments that ship with randcond (one YAML file each, in launch/experiments)."""
    return sorted(yaml_files(EXPERIMENTS))


def table_names() -> list[str]:
    """Returns the names of the tables: several experiments in one report (one YAML file each, in launch/tables)."""
    return sorted(yaml_files(TABLES))


def find_table(name: str) -> Path:
    """Returns a table's YAML file. Raises UserError with the nearest name if there is none."""
    found = yaml_files(TABLES).get(name)
    if found is None:
        raise UserError(f"unknown table {name!r}{suggest(name, table_names())}")
    return found


def find_experiment(name: str) -> Path:
    """Returns the YAML file of an experiment given by name, by path, or as a table's row (table1-row5).

    Raises UserError if there is none, with the nearest name.
    """
    given = Path(name)
    if given.suffix in {".yaml", ".yml"}:
        if given.is_file():
            return given
        beside = [path.name for path in given.parent.glob("*") if path.suffix == given.suffix]
        raise UserError(f"no experiment file {name}{near(given.name, beside)}")
    if name in table_names():
        arms = ", ".join(filter(None, _rows(name)))
        raise UserError(f"{name} is a table: run it with `randcond run`, or name one of its experiments: {arms}")
    table, name = table_row(name) or ("", name)
    if table and compose(find_table(table), TABLES / "base").get("replicates"):
        raise UserError(
            f"{table} has repetitions: `randcond run` accepts one of its rows; other commands need the table, or "
            f"{name} with replicate=NAME and that repetition's overrides"
        )
    found = yaml_files(EXPERIMENTS).get(name)
    if found is None:
        nearest = suggest(name, [*experiment_names(), *table_names()], "randcond --help, make help")
        raise UserError(f"unknown experiment {name!r}{nearest}")
    return found


def table_row(name: str) -> tuple[str, str] | None:
    """Returns the table and the experiment of a row by its number (table1-row5), or None for another name.

    Raises UserError if the table has no such row, or if the row has no experiment.
    """
    table, _, row = name.rpartition("-row")
    if table not in table_names() or not row.isdigit():
        return None
    rows = _rows(table)
    if not 1 <= int(row) <= len(rows):
        raise UserError(f"{name}: {table} has {len(rows)} rows")
    if not rows[int(row) - 1]:
        raise UserError(f"{name}: that row is quoted from the paper; it has no experiment")
    return table, rows[int(row) - 1]


def _rows(table: str) -> list[str]:
    """Returns the experiment of each row of a table, "" for a row that is only quoted."""
    arms = compose(find_table(table), TABLES / "base").get("arms") or {}
    return [arm if isinstance(arm, str) else arm.get("experiment", "") for arm in arms.values()]


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Returns a resolved experiment with its `section.key=value` overrides. Raises UserError naming file and key."""
    path = find_experiment(name)
    data = compose(path, EXPERIMENTS / "base")
    data.setdefault("name", path.stem)
    where = str(path)
    for override in overrides:
        data = merge(data, read_override(override, "section.key=value, e.g. train.steps=100"))
        where = f"{path} and the command line"
    return parse(Config, _named(data), where)


def _named(data: dict[str, Any]) -> dict[str, Any]:
    """Returns `data` with {name} and {replicate} in folders replaced. So a base can set the folders of many rows."""
    names = {"{name}": str(data["name"]), "{replicate}": str(data.get("replicate", ""))}

    def fill(value: Any) -> Any:
        for sign, name in names.items():
            value = value.replace(sign, name) if isinstance(value, str) else value
        return value

    filled = dict(data)
    if isinstance(paths := data.get("paths"), dict):
        filled["paths"] = {key: fill(value) for key, value in paths.items()}
    if isinstance(pool := data.get("pool"), dict) and "whole" in pool:
        filled["pool"] = {**pool, "whole": fill(pool["whole"])}
    return filled


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the resolved configuration as plain data, in the order of the sections."""
    return dataclasses.asdict(config)  # type: ignore[call-overload]


def shown_dict(config: Config) -> dict[str, Any]:
    """Returns the resolved configuration as plain data, without user, password and query of its URLs."""
    shown: dict[str, Any] = shown_settings(to_dict(config))
    return shown


def to_yaml(config: Config) -> str:
    """Returns the resolved configuration as YAML, from which the same configuration can be loaded.

    Without user, password and query of its URLs. A URL that had a query is an error when it is opened again.
    """
    return yaml.safe_dump(shown_dict(config), sort_keys=False)
