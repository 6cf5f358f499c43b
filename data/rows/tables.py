"""Reads small tables and lists of text whole: evaluation lists, splits, image metadata, prompts, words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from randcond.data.inputs.compressed import Readable
from randcond.data.inputs.names import file_name
from randcond.data.rows.bad_rows import BadRows
from randcond.data.rows.columns import Column, find_columns
from randcond.data.rows.csv_rows import csv_rows
from randcond.data.rows.json_rows import json_rows
from randcond.data.rows.opening import compression_of, local_file, naming_errors, open_file
from randcond.data.rows.parquet_rows import parquet_batches
from randcond.data.rows.record_batches import Rows, to_batch
from randcond.data.rows.text_blocks import text_blocks

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    place: str  # for messages: "line 7", in which it begins; in parquet "row 7"
    values: dict[str, str]  # our name of each column -> its text; a value that is missing is ""


def kind_of(path: str) -> str | None:
    """Returns the file type by the name, in lower case, without the compression suffix. None: not a table or list."""
    name = PurePosixPath(file_name(path))
    suffix = (name.with_suffix("") if compression_of(path) else name).suffix.lower()
    return suffix if suffix in KINDS else None


def read_batches(source: str, wanted: Mapping[str, Column], bad: BadRows) -> Iterator[pa.RecordBatch]:
    """Yields the wanted columns of a file (local or a URL) in record batches: text as string, numbers as float64.

    A txt file has one column, `caption`, with a row for each line. Bad rows go to `bad`. Raises UserError naming a file
    that is missing, damaged, not text or without a wanted column; OSError if the file's server or disk fails.
    """
    for batch, _ in _numbered_batches(source, wanted, bad):
        yield batch


def read_table(source: str | Path, wanted: Mapping[str, Column], where: str = "") -> list[Row]:
    """Returns all rows of a table with the wanted columns, which are text. Rows lack an optional column that is absent.

    `where`: names the file in messages; "": its path. Raises UserError as `read_batches` does, and for any bad row.
    """
    rows: list[Row] = []
    unit = "row" if kind_of(str(source)) == ".parquet" else "line"
    for batch, numbers in _numbered_batches(str(source), wanted, BadRows(where or str(source))):
        columns = [[value or "" for value in column.to_pylist()] for column in batch.columns]
        for number, *values in zip(numbers, *columns, strict=True):
            rows.append(Row(f"{unit} {number}", dict(zip(batch.schema.names, values, strict=True))))
    return rows


def read_lines(path: Path, where: str = "") -> list[str]:
    """Returns the lines of a text file, without their ends. Raises UserError naming the file, and the line that is bad.

    `where`: names the file in messages; "": its path.
    """
    bad = BadRows(where or str(path))
    lines: list[str] = []
    with naming_errors(bad.where, lambda: len(lines)), open_file(str(path), bad.where) as file:
        for rows in _txt_rows(file, bad):
            lines += rows.columns[0]
    return lines


def _numbered_batches(
    source: str, wanted: Mapping[str, Column], bad: BadRows
) -> Iterator[tuple[pa.RecordBatch, Sequence[int]]]:
    """Yields record batches with the numbers of their rows. The numbers are of no use if there were bad rows."""
    done = 0
    with naming_errors(bad.where, lambda: done + bad.total):
        if kind_of(source) == ".parquet":
            with local_file(source, bad.where, decompress=True) as path:
                for batch in parquet_batches(path, wanted, bad):
                    yield batch, range(done + 1, done + 1 + batch.num_rows)
                    done += batch.num_rows
            return
        with open_file(source, bad.where) as file:
            for rows in _rows(source, file, wanted, bad):
                batch = to_batch(rows, wanted, bad)
                yield batch, rows.lines
                done += batch.num_rows


def _rows(source: str, file: Readable, wanted: Mapping[str, Column], bad: BadRows) -> Iterator[Rows]:
    kind = kind_of(source)
    if kind in (".csv", ".tsv"):
        return csv_rows(file, wanted, bad, tabs=kind == ".tsv")
    if kind == ".jsonl":
        return json_rows(file, wanted, bad)
    find_columns(bad.where, ["caption"], wanted)
    return _txt_rows(file, bad)


def _txt_rows(file: Readable, bad: BadRows) -> Iterator[Rows]:
    for block in text_blocks(file):
        lines: Sequence[str] = block.lines()
        numbers: Sequence[int] = range(block.start, block.start + len(lines))
        if block.bad or "\r" in block.text:
            wrong = block.bad | {
                number: ("carriage return", "has a carriage return inside; end every line with a line feed")
                for number, line in zip(numbers, lines, strict=True)
                if "\r" in line and number not in block.bad
            }
            for number in sorted(wrong):
                bad.add(f"line {number}", *wrong[number])
            kept = {number: line for number, line in zip(numbers, lines, strict=True) if number not in wrong}
            lines, numbers = list(kept.values()), list(kept)
        if lines:
            yield Rows(["caption"], [lines], numbers)
