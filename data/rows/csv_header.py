"""Reads the header of a csv file, and finds its delimiter: comma, tab, semicolon or bar."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from randcond.data.rows.columns import Column, MissingColumn, find_columns
from randcond.data.rows.text_blocks import Block
from randcond.launch.errors import UserError

if TYPE_CHECKING:
    from _csv import Reader

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_EMPTY_LINES = re.compile(r"(?:[^\S\n]*+\n)*+")
_ENCLOSED = re.compile(r'"(?:[^"]++|"")*+"')
_STRAY = re.compile(r'"(?:[^"]++|"")*+".')  # has text after its closing quote
_NAMED = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # spreadsheets write such a first line


@dataclass(frozen=True)
class Header:
    """The header of a csv file."""

    delimiter: str
    width: int  # number of fields
    found: dict[str, int]  # our name of each wanted column -> its index
    rest: Block  # what comes after the header
    quotes: bool  # whether quotes enclose fields; otherwise they are text

    @property
    def delimiter_name(self) -> str:
        """The name of the delimiter, for messages."""
        return DELIMITERS.get(self.delimiter, self.delimiter)

    def reader(self, lines: Iterable[str]) -> "Reader":
        """Returns Python's strict csv reader for this file."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
        )

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
    quotes = delimiter != "\t" or '"' in line or not _are_text(rest, width)
    return Header(delimiter, width, found, Block(number + 1, rest, below), quotes)


def _are_text(text: str, width: int) -> bool:
    """Returns True if the quotes in lines of tabs are certainly text, as in files of programs that know no quoting.

    So it is if the text is no sound csv, more fields only begin with a quote than are enclosed in quotes, and no quote
    is written twice. A quote that is open at the end of its line counts if the next line is whole, and so no part of a
    caption.
    """
    if width == 1:  # no tab shows where a row ends
        return False
    with suppress(csv.Error):
        if all(len(row) in (0, width) for row in csv.reader(io.StringIO(text), delimiter="\t", strict=True)):
            return False
    open_ones = closed = 0
    for line, after in pairwise([*text.split("\n"), ""]):
        if '"' not in line or line.count("\t") != width - 1:
            continue
        for field in line.split("\t"):
            if _ENCLOSED.fullmatch(field):
                closed += 1
                if '""' in field[1:-1]:
                    return False
            elif field.startswith('"'):
                open_ones += _STRAY.match(field) is not None or after.count("\t") == width - 1
    return open_ones > closed


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
