"""Parses plain data into sections of the configuration. Strict: every error names file and key."""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from randcond.launch.config.strict_yaml import DEEPEST, load_yaml, merge
from randcond.launch.errors import UserError
from randcond.launch.urls import veil

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], words: Sequence[str]) -> Settings:
    """Returns a tool's settings from `key=value` words. As strict as `load_config`: raises UserError naming the key."""
    data: dict[str, Any] = {}
    for word in words:
        data = merge(data, read_override(word, "key=value"))
    return parse(kind, data, "the command line")


def read_override(word: str, form: str) -> dict[str, Any]:
    """Returns `section.key=value` as nested mappings. `form`: the expected form, for the error message."""
    key, found, text = word.partition("=")
    if not found:
        raise UserError(f"override {word!r} is not of the form {form}, without spaces around the =")
    parts = key.split(".")
    if len(parts) > DEEPEST:
        raise UserError(f"override {word[:40]!r}...: a key has at most {DEEPEST} parts, this one has {len(parts)}")
    try:
        value = load_yaml(text)
    except UserError as error:
        open_ended = len(text) < 200 and (text.count("{") > text.count("}") or text.count("[") > text.count("]"))
        split = "the shell has split it at a blank: put quotes around the whole word" if open_ended else error
        raise UserError(f"override {shortened(word)!r}: {split}") from None
    for part in reversed(parts):
        value = {part: value}
    return value


def shortened(text: str, most: int = 200) -> str:
    """Returns a text for a message, cut after `most` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def veiled(word: str, environment: dict[str, str]) -> str:
    """Returns `section.key=value` with `${NAME}` for the secrets of URLs, and adds these variables to `environment`.

    A word without such secrets comes back as it is.
    """
    key, found, text = word.partition("=")
    if not found or "://" not in text:
        return word
    value = load_yaml(text)
    hidden = veil(value, environment)
    return word if hidden == value else f"{key}={json.dumps(hidden, ensure_ascii=False)}"


def parse(kind: type[Settings], data: dict[str, Any], where: str) -> Settings:
    """Returns the data as a dataclass. Raises UserError naming file and key."""
    try:
        # In strict mode pydantic accepts nested mappings only from JSON.
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise UserError("\n".join(_explain(kind, problem, where) for problem in error.errors())) from None


def _explain(kind: Any, problem: Any, where: str) -> str:
    """Returns one pydantic error as a line that names file and key and says what is expected."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        section: Any = kind
        for part in problem["loc"][:-1]:
            inner = get_args(section)[1] if get_origin(section) is dict else None
            section = inner or {field.name: field.type for field in dataclasses.fields(section)}[str(part)]
        known = [field.name for field in dataclasses.fields(section)]
        word = str(problem["loc"][-1])
        if section is kind and (inside := _places_of(word, kind)):
            return f"{where}: {key}: unknown key; did you mean {' or '.join(map(repr, inside))}?"
        return f"{where}: {key}: unknown key{suggest(word, known)}"
    if problem["type"] == "missing":
        return f"{where}: {key}: is missing"
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    if not key:
        return f"{where}: {message}"
    if value is None:
        return f"{where}: {key}: is empty; {message[0].lower()}{message[1:]}"
    return f"{where}: {key}: {message}, got {shortened(repr(value))}{_way_out(problem['type'], value)}"


def _places_of(word: str, kind: Any) -> list[str]:
    """Returns the dotted keys of all sections that end in a word."""
    sections = {field.name: field.type for field in dataclasses.fields(kind) if dataclasses.is_dataclass(field.type)}
    return [
        f"{name}.{word}" for name, section in sections.items() if word in {f.name for f in dataclasses.fields(section)}
    ]


def _way_out(kind: str, value: Any) -> str:
    """Returns what to write in place of a value of the wrong type, where that is clear."""
    if kind == "list_type" and isinstance(value, str):
        return f"; write [{value}]"
    if kind.startswith("int") and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    return ""


def suggest(word: str, known: Sequence[str], listed: str = "") -> str:
    """Returns the end of an error about an unknown word: the nearest known word, or where all are listed."""
    return near(word, known) or (f"; see {listed}" if listed else f"; known: {', '.join(known)}")


def near(word: str, known: Sequence[str]) -> str:
    """Returns the end of an error about an unknown word: the nearest known word, or nothing."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
