"""Finds the wanted columns of a table by one rule: case doesn't count, and spaces and hyphens count as underscores."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from randcond.launch.errors import UserError

_SHOWN = 200  # characters of a header in a message


@dataclass(frozen=True)
class Column:
    """A column that a reader wants."""

    names: tuple[str, ...]  # in the form that normal_name() gives; the first one that the file has is taken
    number: bool = False  # a column of numbers; otherwise of text
    needed_by: str = ""  # the setting that needs the column, for messages
    optional: bool = False


CAPTION = Column(("caption", "text", "prompt"))
FILE_NAME = Column(("file_name",))


class MissingColumn(UserError):
    """A table lacks a column that is needed."""


def normal_name(name: str) -> str:
    """Returns a column's name without surrounding spaces, in lower case, with underscores for spaces and hyphens.

    >>> normal_name(" File Name"), normal_name("TEXT")
    ('file_name', 'text')
    """
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def find_columns(where: str, names: Sequence[str], wanted: Mapping[str, Column]) -> dict[str, int]:
    """Returns our name of each wanted column -> its index in `names`. Optional columns may be absent.

    `where`: names the file in messages. Raises MissingColumn, or UserError if two columns have a wanted name.
    """
    found: dict[str, int] = {}
    normal = [normal_name(name) for name in names]
    for ours, column in wanted.items():
        name = next((name for name in column.names if name in normal), None)
        if name is None:
            if column.optional:
                continue
            named = ours if column.needed_by else _either(column.names)
            reason = f", which {column.needed_by} needs" if column.needed_by else ""
            raise MissingColumn(f"{where}: no column {named}{reason}; it has {shown(names)}")
        places = [place for place, other in enumerate(normal) if other == name]
        if len(places) > 1:
            same = " and ".join(repr(names[place]) for place in places[:2])
            raise UserError(
                f"{where}: the columns {same} are both named {name}, because case, spaces and hyphens don't count; "
                f"rename one of them"
            )
        found[ours] = places[0]
    return found


def shown(names: Sequence[str]) -> str:
    """Returns column names for a message, shortened if they are long."""
    text = ", ".join(names).encode("utf-8", "backslashreplace").decode()
    return (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...") or "none"


def wrong_value(column: Column, value: Any) -> str:
    """Returns what is wrong with a value of a column, for a message; "" if nothing is. None counts as empty.

    >>> wrong_value(CAPTION, 7), wrong_value(CAPTION, "a cat"), wrong_value(Column(("width",), number=True), "512")
    ('a number', '', '')
    """
    if value is None:
        return ""
    if column.number:
        try:
            if value != "":
                float(value)
            return ""
        except (TypeError, ValueError, OverflowError):
            return f"{str(value)[:40]!r}" if isinstance(value, str) else _kind(value)
    if not isinstance(value, str):
        return _kind(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half a character (a lone surrogate)"
    return ""


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
