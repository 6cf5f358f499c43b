"""One experiment = one strict YAML: composition of bases, overrides, errors that name the key.

In: an experiment's name or file and `key=value` overrides. Out: a frozen `Config` (launch/sections.py).
A leaf: imports no torch, so that a login node reads a configuration in a fraction of a second.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from randcond.launch.sections import Config

PACKAGE = Path(__file__).resolve().parent.parent
EXPERIMENTS = PACKAGE / "launch" / "experiments"
TABLES = PACKAGE / "launch" / "tables"

Settings = TypeVar("Settings")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's, where it is built in
    """YAML 1.2 floats (PyYAML reads 5e-5 as a string), and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"line {node.start_mark.line + 1}: key {key!r} is written twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; raises ValueError naming the file when it is broken or no mapping."""
    try:
        data = yaml.load(path.read_text(), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    return data


def experiment_names() -> list[str]:
    """The experiments that ship with randcond, one YAML each below launch/experiments."""
    return sorted(_files(EXPERIMENTS))


def table_names() -> list[str]:
    """The tables (sets of experiments compared in one report), one YAML each below launch/tables."""
    return sorted(_files(TABLES))


def _files(folder: Path) -> dict[str, Path]:
    """The YAML files below a folder by name, those in base/ left out."""
    return {path.stem: path for path in folder.rglob("*.yaml") if path.parent.name != "base"}


def find_table(name: str) -> Path:
    """The YAML file of a table; raises ValueError with the nearest names."""
    found = _files(TABLES).get(name)
    if found is None:
        raise ValueError(f"unknown table {name!r}{_suggest(name, table_names())}")
    return found


def find_experiment(name: str) -> Path:
    """The YAML file of an experiment given by name, by path, or as a table's row (table1-row5).

    Raises ValueError with the nearest names.
    """
    given = Path(name)
    if given.suffix in {".yaml", ".yml"}:
        if given.is_file():
            return given
        raise ValueError(f"no experiment file {name}")
    if name in table_names():
        arms = ", ".join(filter(None, _rows(name)))
        raise ValueError(f"{name} is a table: `randcond run` takes it, a single stage takes its experiments: {arms}")
    table, name = table_row(name) or ("", name)
    if table and compose(find_table(table), TABLES / "base").get("replicates"):
        raise ValueError(
            f"{table} has repetitions: `randcond run` takes its rows, other commands the table, or {name} with "
            "replicate=NAME and that repetition's overrides"
        )
    found = _files(EXPERIMENTS).get(name)
    if found is None:
        near = _suggest(name, [*experiment_names(), *table_names()], "randcond --help, make help")
        raise ValueError(f"unknown experiment {name!r}{near}")
    return found


def table_row(name: str) -> tuple[str, str] | None:
    """Table and experiment of a row by its number (table1-row5), or None for another name; ValueError: no such row."""
    table, _, row = name.rpartition("-row")
    if table not in table_names() or not row.isdigit():
        return None
    rows = _rows(table)
    if not 1 <= int(row) <= len(rows):
        raise ValueError(f"{name}: {table} has {len(rows)} rows")
    if not rows[int(row) - 1]:
        raise ValueError(f"{name}: that row is quoted from the paper, it is not run")
    return table, rows[int(row) - 1]


def _rows(table: str) -> list[str]:
    """The experiment of each row of a table, "" for a quoted one."""
    arms = compose(find_table(table), TABLES / "base").get("arms") or {}
    return [arm if isinstance(arm, str) else arm.get("experiment", "") for arm in arms.values()]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, anything else above replaces what is below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def compose(path: Path, bases_at: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file over its bases; `base:` names one file or a list, beside this file, of the bases or of those that ship.

    Raises ValueError naming a file that is broken, a base that is not found, or one that is its own.
    """
    if path in seen:
        raise ValueError(f"{path}: is its own base, by way of {seen[-1]}")
    data = read_yaml(path)
    said = data.pop("base", [])
    bases = said if isinstance(said, list) else [said]
    if not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: base: a name or a list of names, got {said!r}")
    below: dict[str, Any] = {}
    for base in bases:
        places = [path.parent / f"{base}.yaml", bases_at / f"{base}.yaml"]
        there = [place for place in places if place.is_file() and place != path]
        found = there[0] if there else _files(bases_at.parent).get(base)
        if found is None:
            raise ValueError(
                f"{path}: base {base!r} not found; looked for {' and '.join(map(str, places))}, and what ships"
            )
        below = merge(below, compose(found, bases_at, (*seen, path)))
    return merge(below, data)


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Resolves an experiment and its `section.key=value` overrides; raises ValueError naming file and key."""
    path = find_experiment(name)
    data = compose(path, EXPERIMENTS / "base")
    data.setdefault("name", path.stem)
    where = str(path)
    for override in overrides:
        data = merge(data, _read_override(override, "section.key=value, e.g. train.steps=100"))
        where = f"{path} and the command line"
    return parse(Config, _named(data), where)


def _named(data: dict[str, Any]) -> dict[str, Any]:
    """With {name} and {replicate} in folders replaced by the experiment's: rows of a table need not say theirs."""
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


def read_settings(kind: type[Settings], words: Sequence[str]) -> Settings:
    """A tool's settings out of `key=value` words, as strict as an experiment's; raises ValueError naming the key."""
    data: dict[str, Any] = {}
    for word in words:
        data = merge(data, _read_override(word, "key=value"))
    return parse(kind, data, "the command line")


def _read_override(word: str, form: str) -> dict[str, Any]:
    key, found, text = word.partition("=")
    if not found:
        raise ValueError(f"override {word!r} is not of the form {form}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"override {word!r}: {error}") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def parse(kind: type[Settings], data: dict[str, Any], where: str) -> Settings:
    """Data as a dataclass, strictly; raises ValueError naming file and key."""
    try:
        # Strict mode takes nested mappings only from JSON.
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise ValueError("\n".join(_explain(kind, problem, where) for problem in error.errors())) from None


def _explain(kind: Any, problem: Any, where: str) -> str:
    """One pydantic error as a line that names file and key and says what would do."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        section: Any = kind
        for part in problem["loc"][:-1]:
            inner = get_args(section)[1] if get_origin(section) is dict else None
            section = inner or {field.name: field.type for field in dataclasses.fields(section)}[str(part)]
        known = [field.name for field in dataclasses.fields(section)]
        return f"{where}: {key}: unknown key{_suggest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"{where}: {key}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message}, got {problem['input']!r}" if key else f"{where}: {message}"


def _suggest(word: str, known: Sequence[str], listed: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; see {listed}" if listed else f"; known: {', '.join(known)}"


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain data, in the order of the sections."""
    return dataclasses.asdict(config)  # type: ignore[call-overload]


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; it loads back to the same configuration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def eval_folder(config: Config, weights: str | None = None) -> Path:
    """Where an evaluation is kept: a student's raw and EMA weights apart (default: those of `eval.weights`)."""
    if not config.trains:
        return Path(config.paths.reference)
    return Path(config.paths.run) / f"eval-{weights or config.eval.weights}"


def watched_folder(config: Config, step: int, weights: str) -> Path:
    """Where an evaluation while training is kept."""
    return Path(config.paths.run) / "evaluations" / f"step-{step:06d}" / weights


def student_folder(config: Config, weights: str) -> Path:
    """Where a run exports its student with raw or ema weights."""
    return Path(config.paths.run) / {"raw": "student", "ema": "student_ema"}[weights]


def resolve_path(path: str) -> Path:
    """A path of the configuration; `package:` stands for the folder randcond is installed in."""
    if path.startswith("package:"):
        return PACKAGE / path.removeprefix("package:")
    return Path(path)


def is_url(path: str) -> bool:
    """Whether a path is an address that fsspec opens (http, s3, ...)."""
    return "://" in path


def resolve_sources(sources: Sequence[str]) -> list[str]:
    """Caption sources of the configuration: URLs as they are, `package:` as in `resolve_path`."""
    return [str(resolve_path(source)) if source.startswith("package:") else source for source in sources]
