"""Strict YAML files and their bases: no key twice, numbers as YAML 1.2 reads them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from randcond.launch.errors import UserError


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's, where it is built in
    """YAML 1.2 floats (PyYAML reads 5e-5 as a string), and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises UserError naming line and key where a key is written twice."""
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
    """A YAML mapping; raises UserError naming the file when it is broken or no mapping."""
    try:
        data = yaml.load(path.read_text(), Loader=StrictLoader)
    except (yaml.YAMLError, UserError, ValueError) as error:  # a ValueError: not UTF-8, or no date
        raise UserError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    return data


def yaml_files(folder: Path) -> dict[str, Path]:
    """The YAML files below a folder by name, those in base/ left out."""
    return {path.stem: path for path in folder.rglob("*.yaml") if path.parent.name != "base"}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, anything else above replaces what is below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def compose(path: Path, bases_at: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file over its bases; `base:` names one file or a list, beside this file, of the bases or of those that ship.

    Raises UserError naming a file that is broken, a base that is not found, or one that is its own.
    """
    if path in seen:
        raise UserError(f"{path}: is its own base, by way of {seen[-1]}")
    data = read_yaml(path)
    said = data.pop("base", [])
    bases = said if isinstance(said, list) else [said]
    if not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base: a name or a list of names, got {said!r}")
    below: dict[str, Any] = {}
    for base in bases:
        places = [path.parent / f"{base}.yaml", bases_at / f"{base}.yaml"]
        there = [place for place in places if place.is_file() and place != path]
        found = there[0] if there else yaml_files(bases_at.parent).get(base)
        if found is None:
            raise UserError(
                f"{path}: base {base!r} not found; looked for {' and '.join(map(str, places))}, and what ships"
            )
        below = merge(below, compose(found, bases_at, (*seen, path)))
    return merge(below, data)
