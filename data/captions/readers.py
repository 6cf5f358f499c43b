"""Reads caption files in batches of constant size: parquet, csv, jsonl, txt, plain or compressed, local or remote."""

import codecs
import csv
import errno
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from randcond.data.captions.row_filter import WHOLE, RowFilter, select
from randcond.data.captions.sources import COLUMNS, file_name, kind_of
from randcond.data.inputs.fetch import fetch
from randcond.launch.config.paths import is_url
from randcond.launch.errors import UserError

BATCH = 65_536


def read_batches(source: str, rows: RowFilter = WHOLE) -> Iterator[tuple[pa.StringArray, Counter[str]]]:
    """Cleaned captions of one file, batch by batch, with how many rows of it were dropped by reason.

    Raises UserError naming the file, and the line or row where it can: no such column, not text or UTF-8, damaged;
    OSError where not the file is damaged but what it comes over (a server, a disk, a file system) fails.
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
    except Exception as error:  # whatever a library calls a damaged file
        if isinstance(error, ConnectionError | TimeoutError) and error.errno is None:
            raise  # it names its address
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # of a decompressor: no number
            raise OSError(error.errno, f"caption source {source}, after row {done}: {error.strerror}") from None
        raise UserError(f"caption source {source}, after row {done}: {error or type(error).__name__}") from None


def _raw_batches(source: str, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    reader = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[kind_of(source) or ".txt"]
    with TemporaryDirectory(prefix="randcond-") as folder:
        # A server's file is brought whole, over cuts, and read from there.
        here = str(fetch(source, Path(folder) / file_name(source))) if is_url(source) else source
        with fsspec.open(here, "rb", compression="infer") as file:
            # zstandard's reader gives bytes, not lines
            yield from reader(source, io.BufferedReader(file) if here.endswith(".zst") else file, rows)


def _txt(source: str, file: Any, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    _find_columns(source, ["caption"], rows)
    lines = (line.removeprefix(codecs.BOM_UTF8) if not number else line for number, line in enumerate(file))
    yield from _batched(source, ["caption"], ((line.decode(),) for line in lines))  # so that a bad line is one


def _csv(source: str, file: Any, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")  # spreadsheets write a byte-order mark
    reader = csv.reader(text)
    header = next(reader, [])
    columns = _find_columns(source, header, rows)
    places = [header.index(theirs) for theirs in columns.values()]
    width = max(places) + 1

    def lines() -> Iterator[tuple[Any, ...]]:
        for line in filter(None, reader):  # but for empty lines
            if len(line) < width:
                raise UserError(
                    f"caption source {source}, line {reader.line_num}: has {len(line)} fields of {len(header)}"
                )
            yield tuple(line[place] for place in places)

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
                raise UserError(f"caption source {source}, line {number}: is no object")
            found = columns or _find_columns(source, list(row), rows)
            columns.update(found)
            if missing := [theirs for theirs in found.values() if theirs not in row]:
                raise UserError(f"caption source {source}, line {number}: has no {missing[0]}")
            yield tuple(row[theirs] for theirs in found.values())

    yield from _batched(source, ["caption", *rows.columns()], lines())


def _parquet(source: str, file: Any, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(file)
    columns = _find_columns(source, opened.schema_arrow.names, rows)
    for batch in opened.iter_batches(batch_size=BATCH, columns=list(columns.values())):
        captions = batch.column(columns["caption"])
        if not (pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type)):
            raise UserError(f"caption source {source}: column {columns['caption']} is {captions.type}, not text")
        arrays = [batch.column(theirs) for theirs in columns.values()]
        arrays[0] = pc.cast(arrays[0], pa.string())
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _find_columns(source: str, names: Iterable[str], rows: RowFilter) -> dict[str, str]:
    """Our name -> the source's own (whatever its case) of the caption and of each column the filter needs."""
    own = list(names)
    captions = [column for column in COLUMNS if column in own]
    if not captions:
        raise UserError(f"caption source {source}: no column {' or '.join(COLUMNS)}; it has {', '.join(own)}")
    lower = {name.lower(): name for name in own}
    for column, setting in rows.columns().items():
        if column.lower() not in lower:
            raise UserError(
                f"caption source {source}: no column {column}, which pool.{setting} needs; it has {', '.join(own)}"
            )
    return {"caption": captions[0], **{column: lower[column.lower()] for column in rows.columns()}}


def _batched(source: str, names: list[str], lines: Iterable[tuple[Any, ...]]) -> Iterator[pa.RecordBatch]:
    """Rows of Python values as record batches; numbers may be written as text."""
    held: list[tuple[Any, ...]] = []
    done = 0
    try:
        for line in lines:
            held.append(line)
            if len(held) == BATCH:
                yield _record_batch(source, names, held, done)
                done += len(held)
                held = []
    except GeneratorExit:
        raise
    except Exception:
        if held:  # what was sound before the damage
            yield _record_batch(source, names, held, done)
        raise
    if held:
        yield _record_batch(source, names, held, done)


def _record_batch(source: str, names: list[str], lines: list[tuple[Any, ...]], before: int) -> pa.RecordBatch:
    arrays = []
    for name, values in zip(names, zip(*lines, strict=True), strict=True):
        try:
            if name in ("caption", "NSFW"):
                arrays.append(pa.array(values, pa.string()))
            else:
                arrays.append(pa.array([float(value) if value not in (None, "") else None for value in values]))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            row = before + next((i for i, value in enumerate(values, 1) if not _fine(name, value)), 1)
            kind = "text" if name in ("caption", "NSFW") else "a number"
            raise UserError(f"caption source {source}, row {row}: {name} is not {kind}") from None
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _fine(name: str, value: Any) -> bool:
    if name in ("caption", "NSFW"):
        return value is None or (isinstance(value, str) and value == value.encode(errors="replace").decode())
    try:
        return value in (None, "") or float(value) is not None
    except (TypeError, ValueError, OverflowError):
        return False
