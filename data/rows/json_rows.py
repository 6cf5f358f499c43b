"""Reads JSON Lines: one object on each line, with the wanted keys."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from randcond.data.inputs.compressed import Readable
from randcond.data.rows.bad_rows import BadRows
from randcond.data.rows.columns import Column, MissingColumn, find_columns, normal_name
from randcond.data.rows.record_batches import Rows
from randcond.data.rows.text_blocks import Block, text_blocks

_decoder = json.JSONDecoder()
_scan = _decoder.scan_once  # type: ignore[attr-defined]  # parses a value at a place in a text: (value, end)


def json_rows(file: Readable, wanted: Mapping[str, Column], bad: BadRows) -> Iterator[Rows]:
    """Yields the wanted keys of a JSON Lines file, in blocks of rows. Bad rows go to `bad`.

    The first row that has the wanted keys decides how they are written in all rows. Raises MissingColumn if rows are
    skipped and none has the wanted keys.
    """
    table = _Table(wanted, bad)
    for block in text_blocks(file):
        rows = table.plain(block) or table.careful(block)
        if rows.lines:
            yield rows
    if not table.keys and table.missing:
        raise table.missing


class _Wrong(Exception):
    """A bad row."""

    def __init__(self, reason: str, cause: str) -> None:
        super().__init__(cause)
        self.reason, self.cause = reason, cause


class _Table:
    """The rows of a JSON Lines file."""

    def __init__(self, wanted: Mapping[str, Column], bad: BadRows) -> None:
        self._wanted, self._bad = wanted, bad
        self.keys: dict[str, str] = {}  # our name of each wanted column -> its key, once known
        self._absent: set[str] = set()  # names of optional columns that the rows lack
        self.missing: MissingColumn | None = None

    def plain(self, block: Block) -> Rows | None:
        """Returns the rows of a block in which each line is one sound row; otherwise None."""
        if block.bad or not self.keys or self._absent:
            return None
        lines = block.lines()
        try:
            pairs = [_scan(line, 0) for line in lines]
            columns = [[row[key] for row, _ in pairs] for key in self.keys.values()]
        except (StopIteration, ValueError, RecursionError, KeyError, TypeError, IndexError):
            return None
        if [end for _, end in pairs] != list(map(len, lines)):
            return None
        if any(block.text.count(f'"{key}"') > len(lines) for key in self.keys.values()):  # perhaps twice in a row
            return None
        return Rows(list(self.keys), columns, range(block.start, block.start + len(lines)))

    def careful(self, block: Block) -> Rows:
        """Returns the sound rows of a block, and reports the others."""
        numbers: list[int] = []
        values: list[tuple[Any, ...]] = []
        for number, line in enumerate(block.lines(), block.start):
            if number in block.bad:
                self._bad.add(f"line {number}", *block.bad[number])
            elif line.strip():
                try:
                    values.append(self._row(line, number))
                    numbers.append(number)
                except _Wrong as wrong:
                    self._bad.add(f"line {number}", wrong.reason, wrong.cause)
        columns = [[row[index] for row in values] for index in range(len(self.keys))]
        return Rows(list(self.keys), columns, numbers)

    def _row(self, line: str, number: int) -> tuple[Any, ...]:
        """Returns the wanted values of a line. Raises _Wrong if it is no sound row."""
        try:
            repeats = not self.keys or any(line.count(f'"{key}"') > 1 for key in self.keys.values())
            row = json.loads(line, object_pairs_hook=_once) if repeats else _decoder.decode(line)
        except json.JSONDecodeError as error:
            hint = "; write one object on each line, without brackets around them" if line.strip() == "[" else ""
            raise _Wrong("not JSON", f"not JSON ({error.msg} at column {error.colno}){hint}") from None
        except RecursionError:
            raise _Wrong("not JSON", "not JSON (nested too deeply)") from None
        except ValueError as error:  # a repeated key, a number of too many digits
            raise _Wrong("not JSON", f"not JSON ({error})") from None
        if not isinstance(row, dict):
            raise _Wrong("not a JSON object", 'not a JSON object such as {"caption": "a cat"}')
        if not self.keys:
            where, names = f"{self._bad.where}, line {number}", list(row)
            try:
                self.keys = {ours: names[index] for ours, index in find_columns(where, names, self._wanted).items()}
            except MissingColumn as error:
                self.missing = self.missing or error
                raise _Wrong("missing key", str(error).removeprefix(f"{where}: ")) from None
            self._absent = {name for ours in set(self._wanted) - set(self.keys) for name in self._wanted[ours].names}
        if absent := [key for key in self.keys.values() if key not in row]:
            raise _Wrong("missing key", f"has no key {absent[0]}, which the rows before have")
        if self._absent and (more := [key for key in row if normal_name(key) in self._absent]):
            raise _Wrong("further key", f"has the key {more[0]}, which the rows before lack")
        return tuple(row[key] for key in self.keys.values())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row
