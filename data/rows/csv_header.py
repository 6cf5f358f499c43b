"""Reads the header of a csv file, and finds its delimiter: comma, tab, semicolon or bar."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass

from randcond.data.rows.columns import Column, MissingColumn, find_columns
from randcond.data.rows.text_blocks import Block
from randcond.launch.errors import UserError

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_EMPTY_LINES = re.compile(r"(?:[^\S\n]*+\n)*+")
_NAMED = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # spreadsheets write such a first line


@dataclass(frozen=True)
class Header:
    """The header of a csv file."""

    delimiter: str
    width: int  # number of fields
    found: dict[str, int]  # our name of each wanted column -> its index
    rest: Block  # what comes after the header

    @property
    def delimiter_name(self) -> str:
        """The name of the delimiter, for messages."""
        return DELIMITERS.get(self.delimiter, self.delimiter)

    @property
    def field(self) -> re.Pattern[str]:
        """A pattern that matches one sound field, up to a delimiter or the end of a line."""
        ends = re.escape(self.delimiter) + r"\n"
        return re.compile(rf'"(?:[^"]++|"")*+"(?=[{ends}]|\Z)|(?!")[^{ends}]*+')


def read_header(block: Block, where: str, wanted: Mapping[str, Column], tabs: bool) -> Header | None:
    """Returns the header, which is the first line that is not empty. None: the block has no such line.

    `tabs`: the delimiter is the tab. Otherwise it is the one under which the header has the wanted columns. Raises
    UserError if there is none, if there are two, or if the line is not text.
    """
    number, line, rest = _first_line(block.start, block.text)
    delimiters = "\t" if tabs else "".join(DELIMITERS)
    if named := _NAMED.fullmatch(line):
        delimiters = named[1]
        number, line, rest = _first_line(number + 1, rest)
    if number in block.bad:
        raise UserError(f"{where}, line {number}: {block.bad[number][1]}")
    if not line:
        return None
    below = {bad: cause for bad, cause in block.bad.items() if bad > number}
    delimiter, width, found = _columns(where, line, number, wanted, delimiters)
    return Header(delimiter, width, found, Block(number + 1, rest, below))


def _first_line(number: int, text: str) -> tuple[int, str, str]:
    """Returns the first line that is not empty, with its number, and the text after it."""
    empty = _EMPTY_LINES.match(text)
    start = empty.end() if empty else 0
    end = text.find("\n", start) + 1 or len(text)
    return number + text.count("\n", 0, start), text[start:end].removesuffix("\n"), text[end:]


def _columns(
    where: str, line: str, number: int, wanted: Mapping[str, Column], delimiters: str
) -> tuple[str, int, dict[str, int]]:
    """Returns the delimiter, the number of columns, and the index of each wanted one."""
    fits: list[tuple[str, int, dict[str, int]]] = []
    missing: list[tuple[int, MissingColumn]] = []
    for delimiter in [sign for sign in delimiters if sign in line] or [delimiters[0]]:
        try:
            names = next(csv.reader([line], delimiter=delimiter, strict=True), [])
            fits.append((delimiter, len(names), find_columns(where, names, wanted)))
        except MissingColumn as error:
            missing.append((len(names), error))
        except csv.Error:
            continue  # read with another delimiter, or reported below
    if len(fits) > 1:
        either = " and with a ".join(DELIMITERS.get(delimiter, delimiter) for delimiter, *_ in fits[:2])
        raise UserError(
            f"{where}, line {number}: the header has the wanted columns with a {either} as delimiter; rename the "
            f"columns so that only one fits"
        )
    if fits:
        return fits[0]
    if missing:
        raise max(missing, key=lambda each: each[0])[1]
    raise UserError(f"{where}, line {number}: has a quote in the header that is not closed on this line; close it")
