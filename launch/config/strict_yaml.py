"""Strict YAML files and their bases: duplicate keys are errors, numbers follow YAML 1.2, and the size is bounded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from randcond.launch.errors import UserError

MOST_BYTES = 1_000_000  # of a file
MOST_VALUES = 100_000  # of a document, counting what an alias (*name) stands for at each place
DEEPEST = 20  # levels of lists and mappings
_TAG = "tag:yaml.org,2002:"
_TAGS = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")} | {"!"}


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's, if built in
    """A loader that reads keys as they are written and numbers by YAML 1.2, and rejects duplicate keys.

    PyYAML reads 5e-5 as text, 010 as 8, 1:30 as 90, and 2001-1-1 as a date: here they are a number and three texts.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns the mapping. Raises UserError naming line and key if a key is written twice, or is not a word."""
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"line {line}: a key must be a word, not a list or mapping")
            if key_node.tag == f"{_TAG}merge":
                raise UserError(f"line {line}: merge keys (<<) are not read; write the keys out, or use base:")
            key = key_node.value
            if key in mapping:
                raise UserError(f"line {line}: key {key!r} is written twice")
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


for _kind, _pattern, _first in (
    ("bool", "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    ("float", r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", "<<", "<"),
):
    StrictLoader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))


def load_yaml(text: str) -> Any:
    """Returns a YAML document. Raises UserError, or an error of PyYAML, naming the line, if it is damaged or too large.

    The size is checked before anything is built: a few aliases can stand for billions of values.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"has {len(text):,} characters, more than {MOST_BYTES:,}")
    try:
        _check_size(text)
        return yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(str(error)) from None
    except ValueError as error:  # a lone surrogate, a number of thousands of digits
        raise UserError(f"can't be read: {error}") from None


def _check_size(text: str) -> None:
    """Raises UserError naming the line if a document is too deep or too large, or has a tag that is not read."""
    counts: dict[str, int] = {}  # anchor -> number of values below it
    open_at: list[tuple[str | None, int]] = []  # of each open list or mapping: its anchor, the number of values before
    total = 0
    for event in yaml.parse(text, Loader=StrictLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in counts:
                raise UserError(f"line {line}: *{event.anchor} does not stand for a complete value before it")
            total += counts[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            tag = getattr(event, "tag", None)
            if tag is not None and tag not in _TAGS:
                raise UserError(f"line {line}: the tag {tag.replace(_TAG, '!!')} is not read")
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_at.append((event.anchor, total - 1))
            elif event.anchor:
                counts[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_at.pop()
            if anchor:
                counts[anchor] = total - before
        if len(open_at) > DEEPEST:
            raise UserError(f"line {line}: lists and mappings are nested deeper than {DEEPEST} levels")
        if total > MOST_VALUES:
            raise UserError(f"line {line}: more than {MOST_VALUES:,} values, counting what each alias (*) stands for")


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns a YAML mapping. Raises UserError naming the file if it is damaged, too large, or is not a mapping."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(f"{path}: has {size:,} bytes, more than {MOST_BYTES:,}")
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from None
    except UserError as error:
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
