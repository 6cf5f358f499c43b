"""Reads caption files in batches: parquet, csv, jsonl and txt, plain or compressed, local or from a server."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from randcond.data.captions.row_filter import UNFILTERED, RowFilter, select
from randcond.data.rows.bad_rows import BadRows
from randcond.data.rows.columns import CAPTION, Column, normal_name
from randcond.data.rows.tables import read_batches as read_raw_batches
from randcond.launch.errors import UserError


def read_batches(
    source: str, rows: RowFilter = UNFILTERED, bad: BadRows | None = None
) -> Iterator[tuple[pa.StringArray, Counter[str]]]:
    """Yields batches of cleaned captions of one file, each with the number of dropped rows by reason.

    `rows`: the filter for the rows. `bad`: takes the bad rows; None: the first one raises UserError. Also raises
    UserError with the file, and the line or row if known, if the file is damaged, is not text in UTF-8 or UTF-16
    or has no caption column. Raises OSError if the file's server, disk or file system fails.
    """
    bad = bad or BadRows(f"caption source {source}")
    try:
        for batch in read_raw_batches(source, wanted_columns(rows), bad):
            captions, dropped = select(batch, rows)
            yield captions, dropped + bad.take_counts()
    except UserError:
        if counts := bad.take_counts():  # the bad rows before the damage
            yield pa.array([], pa.string()), counts
        raise
    if counts := bad.take_counts():
        yield pa.array([], pa.string()), counts


def wanted_columns(rows: RowFilter) -> dict[str, Column]:
    """Returns the columns of a caption file that a filter reads: our name -> how to find it."""
    needed = {
        name: Column((normal_name(name),), number=name != "NSFW", needed_by=f"pool.{setting}")
        for name, setting in rows.columns().items()
    }
    return {"caption": CAPTION, **needed}
