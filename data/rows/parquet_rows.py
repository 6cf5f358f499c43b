"""Reads parquet by row group, so that a damaged row group does not cost the others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from randcond.data.rows.bad_rows import BadRows
from randcond.data.rows.columns import Column, find_columns
from randcond.data.rows.record_batches import to_array
from randcond.launch.errors import UserError

BATCH = 65_536  # rows


def parquet_batches(path: Path, wanted: Mapping[str, Column], bad: BadRows) -> Iterator[pa.RecordBatch]:
    """Yields record batches with the wanted columns under our names. Text is of the type string.

    Columns of text may be string, large_string, string_view, or a dictionary of these. Bad rows go to `bad`, and so
    do damaged row groups. Raises UserError if a column is missing or of another type.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        names = parquet.schema_arrow.names
        found = find_columns(bad.where, names, wanted)
        columns = [names[index] for index in found.values()]
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        before = 0  # rows of the row groups before
        for groups in _bundles(counts):
            try:
                whole = list(parquet.iter_batches(BATCH, groups, columns)) if len(groups) > 1 else []
            except (pa.ArrowException, OSError, ValueError):
                whole = []  # one of them is damaged: they are read one by one
            for batch in whole:
                yield _sound(batch, names, found, wanted, bad, before)
                before += batch.num_rows
            for number in [] if whole else groups:
                yield from _row_group(parquet, number, before, found, wanted, bad)
                before += counts[number]


def _bundles(counts: list[int]) -> Iterator[list[int]]:
    """Yields the numbers of row groups, in order. Small ones are read together, because that is faster."""
    bundle: list[int] = []
    for number, count in enumerate(counts):
        if bundle and sum(counts[other] for other in bundle) + count > BATCH:
            yield bundle
            bundle = []
        bundle.append(number)
    if bundle:
        yield bundle


def _row_group(
    parquet: Any, number: int, before: int, found: dict[str, int], wanted: Mapping[str, Column], bad: BadRows
) -> Iterator[pa.RecordBatch]:
    """Yields the sound rows of a row group, as far as it is readable. `before`: the number of rows before it."""
    names, count = parquet.schema_arrow.names, parquet.metadata.row_group(number).num_rows
    batches = parquet.iter_batches(BATCH, [number], [names[index] for index in found.values()])
    done = 0
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk
            place = f"row group {number + 1} (rows {before + done + 1:,} to {before + count:,})"
            bad.add(place, "damaged row group", f"damaged ({str(error).strip()})", count - done)
            return
        if batch is None:
            return
        yield _sound(batch, names, found, wanted, bad, before + done)
        done += batch.num_rows


def _sound(
    batch: pa.RecordBatch,
    names: list[str],
    found: dict[str, int],
    wanted: Mapping[str, Column],
    bad: BadRows,
    before: int,
) -> pa.RecordBatch:
    """Returns the sound rows of a batch. `before`: the number of rows before it."""
    places = range(before + 1, before + 1 + batch.num_rows)
    arrays: list[pa.Array] = []
    wrong: dict[int, tuple[str, str, str]] = {}  # row -> (column, reason, cause)
    for ours, index in found.items():
        array, column = batch.column(names[index]), wanted[ours]
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        is_text = any(is_type(array.type) for is_type in _TEXT)
        if column.number and is_text:
            array, errors = to_array(column, array.to_pylist())
        elif column.number:
            errors = {}
        elif is_text:
            array, errors = _text(array)
        else:
            raise UserError(
                f"{bad.where}: column {names[index]} is {batch.schema.field(names[index]).type}, expected text"
            )
        wrong |= {row: (ours, *error) for row, error in errors.items() if row not in wrong}
        arrays.append(array)
    for row, (ours, reason, cause) in sorted(wrong.items()):
        bad.add(f"row {places[row]}", reason, f"{ours} {cause}")
    result = pa.RecordBatch.from_arrays(arrays, names=list(found))
    return result.filter(pa.array([row not in wrong for row in range(batch.num_rows)])) if wrong else result


_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


def _text(array: pa.Array) -> tuple[pa.StringArray, dict[int, tuple[str, str]]]:
    """Returns an array of text as strings, and what is wrong by row. Parquet does not check that text is UTF-8."""
    try:
        array.validate(full=True)
        return pc.cast(array, pa.string()), {}
    except pa.ArrowInvalid:
        values = pc.cast(array, pa.large_binary()).to_pylist()
    texts, errors = [], {}
    for row, value in enumerate(values):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError as error:
            texts.append(None)
            errors[row] = ("not UTF-8", f"is not UTF-8 (byte {value[error.start]:#04x}); write the file again as UTF-8")
    return pa.array(texts, pa.string()), errors
