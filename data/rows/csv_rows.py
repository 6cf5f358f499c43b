"""Reads csv strictly: every row has as many fields as the header, and every quote is closed."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping

from randcond.data.inputs.compressed import Readable
from randcond.data.rows.bad_rows import BadRows
from randcond.data.rows.columns import Column
from randcond.data.rows.csv_header import Header, read_header
from randcond.data.rows.record_batches import Rows
from randcond.data.rows.text_blocks import LONGEST, Block, text_blocks
from randcond.launch.errors import UserError

_LEARNT = 1000  # rows that tell what each column holds
_ENOUGH = 10  # rows that tell it with certainty
_ROWS = 8  # that many lines of a quoted caption that are rows on their own are no caption
_DOUBTED = 100  # lines after an open quote that may belong to it
_READ_AGAIN = 1 << 26  # characters that may be read again after quotes that are not closed, beside 4 times the file

csv.field_size_limit(LONGEST)


def csv_rows(file: Readable, wanted: Mapping[str, Column], bad: BadRows, tabs: bool = False) -> Iterator[Rows]:
    """Yields the wanted columns of a csv file, in blocks of rows. Bad rows go to `bad`.

    `tabs`: the delimiter is the tab; otherwise it is found in the header. Raises UserError if a column is missing.
    """
    table = None
    for block in text_blocks(file):
        if table is None:
            header = read_header(block, bad.where, wanted, tabs)
            if header is None:  # only empty lines so far
                continue
            table = _Table(header, bad)
            block = header.rest
        yield from table.read(block)
    if table is None:
        raise UserError(f"{bad.where}: is empty, expected a header")
    yield from table.finish()


class _Table:
    """The rows of a csv file below its header."""

    def __init__(self, header: Header, bad: BadRows) -> None:
        self._header, self._bad = header, bad
        self._pending: Block | None = None  # a row that the blocks so far don't end
        self._spans = False  # whether the last block had rows of several lines
        self._read = self._read_again = 0  # characters
        self._learnt = 0  # rows
        self._kinds: list[set[str]] = [set() for _ in range(header.width)]  # that each column has in these rows
        self._doubt = 0  # the line of an open quote, while the lines after it may still belong to it

    def read(self, block: Block, at_end: bool = False) -> Iterator[Rows]:
        """Yields the whole rows of the next block."""
        self._read += len(block.text)
        if self._pending:
            bad = {**self._pending.bad, **block.bad}
            block, self._pending = Block(self._pending.start, self._pending.text + block.text, bad), None
        rows = None if block.bad or self._spans or self._doubt else self._plain(block)
        if rows is None:
            rows = self._careful(block, at_end)
        if rows.lines:
            yield rows

    def finish(self) -> Iterator[Rows]:
        """Yields the rows after the last block."""
        if self._pending:
            block, self._pending = self._pending, None
            yield from self.read(block, at_end=True)

    def _plain(self, block: Block) -> Rows | None:
        """Returns the rows of a block in which each line is one sound row; otherwise None."""
        text = block.text
        quoted = '"' in text
        lines = io.StringIO(text, newline="\n") if quoted else block.lines()
        try:
            rows = list(self._header.reader(lines))
        except csv.Error:
            return None
        if quoted and len(rows) != text.count("\n") + (not text.endswith("\n")):
            return None
        widths = set(map(len, rows))
        if not widths <= {self._header.width, 0}:
            return None
        self._learn(rows[:100])
        if 0 in widths:  # empty lines
            numbers = [number for number, row in enumerate(rows, block.start) if row]
            return self._rows(list(filter(None, rows)), numbers)
        return self._rows(rows, range(block.start, block.start + len(rows)))

    def _rows(self, rows: list[list[str]], lines: list[int] | range) -> Rows:
        found = self._header.found
        return Rows(list(found), [[row[index] for row in rows] for index in found.values()], lines)

    def _careful(self, block: Block, at_end: bool) -> Rows:
        """Returns the sound rows of a block, and reports the others. Keeps a row that the block doesn't end."""
        lines = [f"{line}\n" for line in block.lines()]
        kept: dict[int, list[str]] = {}  # line number -> row
        self._spans = False
        index, width = 0, self._header.width
        while index < len(lines):
            source = _from(lines, index) if index else iter(lines)  # faster, and enough if no row is bad
            reader = self._header.reader(source)
            begin = index  # of the current row; its end is the begin of the next
            try:
                for row in reader:
                    end = index + reader.line_num
                    if end - begin == 1 and len(row) == width and not block.bad and not self._doubt:
                        kept[block.start + begin] = row
                        if self._learnt < _LEARNT:
                            self._learn([row])
                        begin = end
                        continue
                    if not self._learnt and (self._doubt or (len(row) != width and end - begin > 1)):
                        self._learn(filter(None, map(self._alone, lines[end : end + _LEARNT])))
                        self._learnt = max(self._learnt, 1)  # once is enough
                    begin = self._check(row, lines[begin:end], block, begin, kept)
                    if begin != end:
                        break
                index = begin
            except csv.Error as error:
                reached = index + reader.line_num
                if "unexpected end" in str(error) and not at_end and sum(map(len, lines[begin:])) <= LONGEST:
                    number = block.start + begin
                    bad = {line: cause for line, cause in block.bad.items() if line >= number}
                    self._pending = Block(number, "".join(lines[begin:]), bad)
                    break
                index = begin + self._broken(lines[begin:reached], block, begin, str(error))
        return self._rows(list(kept.values()), list(kept))

    def _check(self, row: list[str], lines: list[str], block: Block, begin: int, kept: dict[int, list[str]]) -> int:
        """Keeps a row, or reports it. Returns the index of the line to go on at. `lines`: the row's lines."""
        number, width, end = block.start + begin, self._header.width, begin + len(lines)
        if len(lines) > 1:
            self._spans = True
        if not row or (width > 1 and len(row) == 1 and not row[0].strip() and len(lines) == 1):
            if number in block.bad:
                self._bad.add(f"line {number}", *block.bad[number])
            return end
        if len(lines) > 1 and self._are_rows(row, lines):
            closed = f"is closed only by a quote in line {number + len(lines) - 1}"
            return begin + self._unclosed(lines, number, self._opening(lines, spanning=True), closed)
        if block.bad and (wrong := [line for line in range(number, number + len(lines)) if line in block.bad]):
            self._bad.add(f"line {wrong[0]}", *block.bad[wrong[0]])
        elif self._doubt and number <= self._doubt + _DOUBTED and not self._is_certain(row):
            cause = f"may belong to the quote in line {self._doubt}, which is not closed; close that one"
            self._bad.add(f"line {number}", "unclosed quote", cause)
        elif len(row) != width:
            cause = f"has {len(row)} fields, expected {width} as in the header"
            if len(row) > width:
                cause += f"; put double quotes around a caption that contains a {self._header.delimiter_name}"
            self._bad.add(f"line {number}", "number of fields", cause)
        else:
            self._doubt = 0
            self._learn([row])
            kept[number] = row
        return end

    def _are_rows(self, row: list[str], lines: list[str]) -> bool:
        """Returns True if the lines that a quote joins are certainly rows, so that it was not meant to join them.

        At least half of them must be. If `row` is sound otherwise: also at least _ROWS, or the quote is in a column
        that has had single words alone, such as numbers and addresses.
        """
        if (width := self._header.width) == 1 or not self._learnt:
            return False
        if len(row) == width and self._learnt >= _ENOUGH and any(map(self._is_odd, range(width), row)):
            return True
        least = _ROWS if len(row) == width else 1
        certain = sum(self._is_certain(self._alone(line)) for line in lines[1:])
        return certain >= least and certain * 2 >= len(lines) - 1

    def _is_odd(self, column: int, text: str) -> bool:
        """Returns True for several lines in a column, not the caption's, of numbers, addresses or file names."""
        kinds = self._kinds[column] - {"empty"}
        return "\n" in text and column != self._header.found.get("caption") and bool(kinds) and kinds <= _WORDS

    def _alone(self, line: str) -> list[str]:
        """Returns the fields of a line if it is a row on its own; otherwise []."""
        if line.count(self._header.delimiter) < self._header.width - 1:
            return []
        try:
            fields = next(self._header.reader([line]), [])
        except csv.Error:
            return []
        return fields if len(fields) == self._header.width else []

    def _is_certain(self, row: list[str]) -> bool:
        """Returns True if each field of a row is of a kind that its column has in other rows."""
        return len(row) == self._header.width and all(map(_is_one_of, row, self._kinds))

    def _learn(self, rows: Iterable[list[str]]) -> None:
        """Notes the kinds of the fields of sound rows."""
        for row in rows:
            if row and self._learnt < _LEARNT:
                self._learnt += 1
                for kinds, text in zip(self._kinds, row, strict=True):
                    kinds.add(_kind(text))

    def _broken(self, lines: list[str], block: Block, begin: int, error: str) -> int:
        """Reports a row that Python's csv refuses. Returns how many of its lines to pass over."""
        number, last = block.start + begin, len(lines) - 1
        opening = self._opening(lines)
        if number + opening in block.bad:
            self._bad.add(f"line {number + opening}", *block.bad[number + opening])
            return opening + 1
        if "new-line" in error:
            self._bad.add(f"line {number + last}", "carriage return", CARRIAGE_RETURN)
            return len(lines)
        if "expected after" not in error:
            return self._unclosed(lines, number, opening, "is never closed")
        if opening == last:
            self._doubt = number + last
            cause = 'has text after a closing quote; write a quote inside a quoted caption twice ("")'
            self._bad.add(f"line {number + last}", "stray quote", cause)
            return len(lines)
        return self._unclosed(lines, number, opening, f"is closed only by a quote in line {number + last}")

    def _unclosed(self, lines: list[str], number: int, opening: int, closed: str) -> int:
        self._read_again += sum(map(len, lines))
        if self._read_again > _READ_AGAIN + 4 * self._read:
            raise ValueError("too many quotes are not closed, so it is no csv file")
        self._doubt = number + opening
        cause = f"has a quote that {closed}; close it, or write it twice inside a quoted caption"
        self._bad.add(f"line {number + opening}", "unclosed quote", cause)
        return opening + 1

    def _opening(self, lines: list[str], spanning: bool = False) -> int:
        """Returns the index of the line with the quote that is not closed, or closed in the middle of a field.

        If the row has too many fields, or with `spanning`: of the first quote that is closed in another line.
        """
        text, place, field = "".join(lines), 0, self._header.field
        fields, first = 0, -1  # the place of the first quote that is closed in another line
        while (match := field.match(text, place)) and match.end() < len(text):
            fields += 1
            if first < 0 and "\n" in match[0]:
                first = place
            if first >= 0 and (spanning or fields > self._header.width):
                return text.count("\n", 0, first)
            place = match.end() + 1
        return text.count("\n", 0, first if spanning and first >= 0 else place)


CARRIAGE_RETURN = "has a carriage return inside; end every line with a line feed, or put the caption in double quotes"


_KINDS = re.compile(
    r"(?P<number>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)|(?P<address>\w+://\S+)|(?P<file>\S+\.\w{2,4})", re.ASCII
)
_WORDS = {"number", "address", "file"}


def _kind(text: str) -> str:
    """Returns the kind of a field. Rows of a file have the same kinds in a column; lines of a text have others.

    >>> _kind("17"), _kind("http://x/a.jpg"), _kind("a cat"), _kind(" a comma and a blank were before this")
    ('number', 'address', 'text', 'text after a blank')
    """
    text = text.strip('"')
    if not text.strip():
        return "empty"
    if match := _KINDS.fullmatch(text):
        return match.lastgroup or ""
    return "text after a blank" if text[0].isspace() else "text"


def _is_one_of(text: str, kinds: set[str]) -> bool:
    return not kinds or (kind := _kind(text)) in kinds or kind == "empty"


def _from(lines: list[str], index: int) -> Iterator[str]:
    while index < len(lines):
        yield lines[index]
        index += 1
