"""Strict YAML files and their bases: duplicate keys are errors, and numbers follow YAML 1.2."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from randcond.launch.errors import UserError


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's, if built in
    """A loader that reads YAML 1.2 floats (PyYAML reads 5e-5 as a string), and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns the mapping. Raises UserError naming line and key if a key is written twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"line {node.start_mark.line + 1}: key {key!r} is written twice")
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns a YAML mapping. Raises UserError naming the file if it is damaged or is not a mapping."""
    try:
        data = yaml.load(path.read_text(), Loader=StrictLoader)
    except (yaml.YAMLError, UserError, ValueError) as error:  # ValueError: not UTF-8, or an invalid date
        raise UserError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    return data


def yaml_files(folder: Path) -> dict[str, Path]:
    """Returns the YAML files in a folder and its subfolders by name, without those in base/."""
    return {path.stem: path for path in folder.rglob("*.yaml") if path.parent.name != "base"}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `below` with `above` over it. Mappings are merged key by key; anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def compose(path: Path, bases_at: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns a file's mapping over those of its bases.

    `base:` names one file or a list. They are looked for next to this file, in `bases_at`, and among the files that
    ship with randcond. Raises UserError naming a file that is damaged, a base that is not found, or a circle of bases.
    """
    if path in seen:
        raise UserError(f"{path}: is its own base, through {seen[-1]}")
    data = read_yaml(path)
    said = data.pop("base", [])
    bases = said if isinstance(said, list) else [said]
    if not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base: expected a name or a list of names, got {said!r}")
    below: dict[str, Any] = {}
    for base in bases:
        places = [path.parent / f"{base}.yaml", bases_at / f"{base}.yaml"]
        there = [place for place in places if place.is_file() and place != path]
        found = there[0] if there else yaml_files(bases_at.parent).get(base)
        if found is None:
            raise UserError(
                f"{path}: base {base!r} not found; looked for {' and '.join(map(str, places))}, "
                "and among the files that ship with randcond"
            )
        below = merge(below, compose(found, bases_at, (*seen, path)))
    return merge(below, data)
