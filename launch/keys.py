"""The keys of an experiment's YAML: type, default, meaning, an example; and their JSON schema for editors."""

import ast
import dataclasses
import io
import json
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from randcond.launch.config import sections

_SAMPLES = {str: "name", int: 8, float: 0.5, bool: True}  # examples of keys whose default is null


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of an experiment."""

    name: str  # dotted
    kind: str  # its type, in words
    default: Any  # dataclasses.MISSING: it must be given
    meaning: str
    example: str  # an override


def all_keys() -> Iterator[Key]:
    """Yields every key of an experiment, in the order of sections.py."""
    yield from _keys(sections.Config, "", _comments())


def _keys(section: type, above: str, comments: dict[tuple[str, str], str]) -> Iterator[Key]:
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        name, hint = f"{above}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{name}.", comments)  # type: ignore[arg-type]
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        value = _sample(hint) if default in (None, dataclasses.MISSING, "", []) else default
        yield Key(name, _words(hint), default, comments[section.__name__, field.name], f"{name}={yaml_value(value)}")


def _comments() -> dict[tuple[str, str], str]:
    """Returns the meaning of each (class, key): the comment behind it in sections.py, or the lines above it."""
    text = Path(sections.__file__).read_text(encoding="utf-8")
    lines = text.splitlines()
    notes = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(text).body:
        for item in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(item, ast.AnnAssign):
                continue
            own = [notes[number] for number in range(item.lineno, (item.end_lineno or 0) + 1) if number in notes]
            number = item.lineno - 1
            above: list[str] = []
            while number in notes and lines[number - 1].lstrip().startswith("#"):
                above.insert(0, notes[number])
                number -= 1
            assert isinstance(item.target, ast.Name) and isinstance(node, ast.ClassDef)
            found[node.name, item.target.id] = " ".join([*above, *own]) or item.target.id.replace("_", " ")
    return found


def _words(hint: Any) -> str:
    """Returns a type in words.

    >>> _words(Literal["random", "teacher"]), _words(int | None), _words(list[str])
    ('random, teacher', 'int or null', 'list of str')
    """
    if hint is type(None):
        return "null"
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, inner))
    if origin is list:
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"mapping of {_words(inner[0])} to {_words(inner[1])}"
    return str(getattr(hint, "__name__", hint))


def _sample(hint: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return inner[0]
    if origin in (Union, types.UnionType):
        return _sample(inner[0])
    return [_sample(inner[0])] if origin is list else _SAMPLES.get(hint, {})


def yaml_value(value: Any) -> str:
    """Returns a value as an override gives it."""
    return value if isinstance(value, str) and value else json.dumps(value)


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of an experiment's YAML. Keys that a base file gives need not be repeated."""
    schema = TypeAdapter(sections.Config).json_schema()
    comments = _comments()
    for name, section in [("Config", schema), *schema["$defs"].items()]:
        section.pop("required", None)
        for key, entry in section["properties"].items():
            entry["description"] = comments[name, key]
    schema["properties"]["base"] = {
        "description": "YAML files that this one builds on, later ones over earlier ones",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "randcond experiment", **schema}
