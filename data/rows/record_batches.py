"""Turns rows of Python values into Arrow record batches, and finds the values that don't fit their column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from randcond.data.rows.bad_rows import BadRows
from randcond.data.rows.columns import Column, wrong_value


@dataclass(frozen=True)
class Rows:
    """Some rows of a file, by column."""

    names: list[str]  # our names of the columns
    columns: Sequence[Sequence[Any]]  # the values of each column
    lines: Sequence[int]  # the number of the line in which each row begins


def to_batch(rows: Rows, wanted: Mapping[str, Column], bad: BadRows) -> pa.RecordBatch:
    """Returns rows as a record batch of strings and float64. Numbers may be given as text; "" and None are null.

    Rows with another value go to `bad`.
    """
    arrays: list[pa.Array] = []
    wrong: dict[int, tuple[str, str, str]] = {}  # row -> (column, reason, cause)
    for name, values in zip(rows.names, rows.columns, strict=True):
        array, errors = to_array(wanted[name], values)
        arrays.append(array)
        wrong |= {row: (name, *error) for row, error in errors.items() if row not in wrong}
    for row, (name, reason, cause) in sorted(wrong.items()):
        bad.add(f"line {rows.lines[row]}", reason, f"{name} {cause}")
    batch = pa.RecordBatch.from_arrays(arrays, names=rows.names)
    return batch.filter(pa.array([row not in wrong for row in range(batch.num_rows)])) if wrong else batch


def to_array(column: Column, values: Sequence[Any]) -> tuple[pa.Array, dict[int, tuple[str, str]]]:
    """Returns the values of a column as an array, and index -> (reason, cause) of the wrong ones, which are null."""
    try:
        return _array(column, values), {}
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        wrong = {row: what for row, value in enumerate(values) if (what := wrong_value(column, value))}
        kind = "a number" if column.number else "text"
        errors = {row: (f"not {kind}", f"is {what}, expected {kind}") for row, what in wrong.items()}
        return _array(column, [None if row in wrong else value for row, value in enumerate(values)]), errors


def _array(column: Column, values: Sequence[Any]) -> pa.Array:
    if not column.number:
        return pa.array(values, pa.string())
    return pa.array([None if value is None or value == "" else float(value) for value in values], pa.float64())
