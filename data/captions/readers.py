"""Reads caption files in batches: parquet, csv, jsonl and txt, plain or compressed, local or from a server."""

import codecs
import csv
import errno
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from randcond.data.captions.row_filter import UNFILTERED, RowFilter, select
from randcond.data.captions.sources import COLUMNS, file_name, kind_of
from randcond.data.inputs.fetch import fetch
from randcond.launch.config.paths import is_url
from randcond.launch.errors import UserError

BATCH = 65_536


def read_batches(source: str, rows: RowFilter = UNFILTERED) -> Iterator[tuple[pa.StringArray, Counter[str]]]:
    """Yields batches of cleaned captions of one file, each with the number of dropped rows by reason.

    `rows`: the filter for the rows. Raises UserError with the file, and the line or row if known, if the file is
    damaged, is not UTF-8, or has no caption column. Raises OSError if the file's server, disk or file system fails.
    """
    done = 0
    try:
        for batch in _raw_batches(source, rows):
            yield select(batch, rows)
            done += batch.num_rows
    except UnicodeDecodeError as error:
        raise UserError(f"caption source {source}, after row {done}: not UTF-8 ({error.reason})") from None
    except UserError:
        raise
    except Exception as error:  # libraries raise many types for a damaged file
        if isinstance(error, ConnectionError | TimeoutError) and error.errno is None:
            raise  # raised by fetch(): the message contains the URL
        # Decompressors raise OSError without an errno if the data is damaged.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise OSError(error.errno, f"caption source {source}, after row {done}: {error.strerror}") from None
        raise UserError(f"caption source {source}, after row {done}: {error or type(error).__name__}") from None


def _raw_batches(source: str, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    reader = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[kind_of(source) or ".txt"]
    with TemporaryDirectory(prefix="randcond-") as folder:
        # Files on a server are downloaded first: fetch() resumes after a lost connection.
        path = str(fetch(source, Path(folder) / file_name(source))) if is_url(source) else source
        with fsspec.open(path, "rb", compression="infer") as file:
            # zstandard's reader does not iterate over lines
            yield from reader(source, io.BufferedReader(file) if path.endswith(".zst") else file, rows)


@contextmanager
def readable_csv(path: Path | str) -> Iterator[None]:
    """A context that reads a csv file by Python's `csv`. Raises UserError naming a file that is not csv in UTF-8."""
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a csv file in UTF-8 ({error})") from None


def _txt(source: str, file: Any, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    _find_columns(source, ["caption"], rows)
    lines = (line.removeprefix(codecs.BOM_UTF8) if not number else line for number, line in enumerate(file))
    # Decodes line by line, so that the lines before a line that is not UTF-8 are used.
    yield from _batched(source, ["caption"], ((line.decode(),) for line in lines))


def _csv(source: str, file: Any, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")  # spreadsheets write a byte-order mark
    reader = csv.reader(text)
    header = next(reader, [])
    columns = _find_columns(source, header, rows)
    indices = [header.index(column) for column in columns.values()]
    width = max(indices) + 1

    def lines() -> Iterator[tuple[Any, ...]]:
        for line in filter(None, reader):  # skips empty lines
            if len(line) < width:
                raise UserError(
                    f"caption source {source}, line {reader.line_num}: has {len(line)} fields, expected {len(header)}"
                )
            yield tuple(line[index] for index in indices)

    yield from _batched(source, list(columns), lines())


def _jsonl(source: str, file: Any, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    columns: dict[str, str] = {}

    def lines() -> Iterator[tuple[Any, ...]]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"caption source {source}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"caption source {source}, line {number}: not a JSON object")
            if not columns:
                columns.update(_find_columns(source, list(row), rows))
            if missing := [column for column in columns.values() if column not in row]:
                raise UserError(f"caption source {source}, line {number}: has no key {missing[0]}")
            yield tuple(row[column] for column in columns.values())

    yield from _batched(source, ["caption", *rows.columns()], lines())


def _parquet(source: str, file: Any, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    columns = _find_columns(source, parquet.schema_arrow.names, rows)
    for batch in parquet.iter_batches(batch_size=BATCH, columns=list(columns.values())):
        captions = batch.column(columns["caption"])
        if not (pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type)):
            raise UserError(f"caption source {source}: column {columns['caption']} is {captions.type}, expected text")
        arrays = [batch.column(column) for column in columns.values()]
        arrays[0] = pc.cast(arrays[0], pa.string())
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _find_columns(source: str, names: Iterable[str], rows: RowFilter) -> dict[str, str]:
    """Returns our column name -> the source's column name, for the caption and each column that the filter needs.

    Columns of the filter are matched without regard to case.
    """
    names = list(names)
    captions = [column for column in COLUMNS if column in names]
    if not captions:
        raise UserError(f"caption source {source}: no column {' or '.join(COLUMNS)}; it has {', '.join(names)}")
    lower = {name.lower(): name for name in names}
    for column, setting in rows.columns().items():
        if column.lower() not in lower:
            raise UserError(
                f"caption source {source}: no column {column}, which pool.{setting} needs; it has {', '.join(names)}"
            )
    return {"caption": captions[0], **{column: lower[column.lower()] for column in rows.columns()}}


def _batched(source: str, names: list[str], lines: Iterable[tuple[Any, ...]]) -> Iterator[pa.RecordBatch]:
    """Converts rows of Python values to record batches. Numbers may be given as text."""
    buffer: list[tuple[Any, ...]] = []
    done = 0
    try:
        for line in lines:
            buffer.append(line)
            if len(buffer) == BATCH:
                yield _record_batch(source, names, buffer, done)
                done += len(buffer)
                buffer = []
    except GeneratorExit:
        raise
    except Exception:
        if buffer:  # the valid rows before the damage
            yield _record_batch(source, names, buffer, done)
        raise
    if buffer:
        yield _record_batch(source, names, buffer, done)


def _record_batch(source: str, names: list[str], lines: list[tuple[Any, ...]], before: int) -> pa.RecordBatch:
    arrays = []
    for name, values in zip(names, zip(*lines, strict=True), strict=True):
        try:
            if name in ("caption", "NSFW"):
                arrays.append(pa.array(values, pa.string()))
            else:
                arrays.append(pa.array([float(value) if value not in (None, "") else None for value in values]))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            row = before + next((i for i, value in enumerate(values, 1) if not _is_valid(name, value)), 1)
            kind = "text" if name in ("caption", "NSFW") else "a number"
            raise UserError(f"caption source {source}, row {row}: {name} is not {kind}") from None
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _is_valid(name: str, value: Any) -> bool:
    if name in ("caption", "NSFW"):
        return value is None or (isinstance(value, str) and value == value.encode(errors="replace").decode())
    try:
        return value in (None, "") or float(value) is not None
    except (TypeError, ValueError, OverflowError):
        return False
