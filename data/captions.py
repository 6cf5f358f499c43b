"""Reads caption sources (txt, csv, jsonl, parquet) one caption at a time, and stores captions for O(1) reads.

Stored as an Arrow IPC file, memory-mapped: nothing is copied into a process, all share the page cache.
"""

import csv
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from randcond.data.files import written_whole

COLUMNS = ("caption", "TEXT", "text")
ROWS_PER_BATCH = 65_536


def read_source(path: Path) -> Iterator[str]:
    """Captions of one file, whitespace and Unicode cleaned, empty ones included as "".

    Raises ValueError naming the file when it is missing, of an unknown kind or without a caption column.
    """
    readers = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if not path.is_file():
        raise ValueError(f"caption source {path}: no such file")
    if path.suffix not in readers:
        raise ValueError(f"caption source {path}: unknown kind {path.suffix!r}; known: {', '.join(readers)}")
    number = 0
    try:
        for caption in readers[path.suffix](path):
            number += 1
            yield clean(caption)
    except UnicodeDecodeError as error:
        raise ValueError(f"caption source {path}, after caption {number}: not UTF-8 ({error.reason})") from None
    except TypeError:
        raise ValueError(f"caption source {path}, caption {number}: is not text") from None


def clean(caption: str | None) -> str:
    """One line, NFC, single spaces."""
    return " ".join(unicodedata.normalize("NFC", caption or "").split())


def _txt(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _csv(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte-order mark
        rows = csv.DictReader(file)
        column = _caption_column(path, rows.fieldnames or [])
        for row in rows:
            yield row[column]


def _jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"caption source {path}, line {number}: {error}") from None
            yield row[_caption_column(path, list(row))]


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise ValueError(f"caption source {path}: {error}") from None
    column = _caption_column(path, file.schema_arrow.names)
    for batch in file.iter_batches(columns=[column]):
        yield from batch.column(0).to_pylist()


def _caption_column(path: Path, names: Iterable[str]) -> str:
    found = [column for column in COLUMNS if column in names]
    if not found:
        raise ValueError(f"caption source {path}: no column {' or '.join(COLUMNS)}; it has {', '.join(names)}")
    return found[0]


def read_unique(paths: list[Path]) -> tuple[list[str], dict[str, int]]:
    """The distinct non-empty captions of all sources in their order, and how many were dropped by reason.

    Raises ValueError naming a source that gives no caption at all.
    """
    captions: dict[str, None] = {}
    dropped = {"empty": 0, "duplicate": 0}
    for path in paths:
        read = 0
        for caption in read_source(path):
            if not caption:
                dropped["empty"] += 1
                continue
            read += 1
            if caption in captions:
                dropped["duplicate"] += 1
            captions[caption] = None
        if not read:
            raise ValueError(f"caption source {path}: holds no caption")
    return list(captions), dropped


def names_any(words: list[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words as a whole word, whatever its case."""
    return re.compile(r"\b(" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE) if words else re.compile("(?!)")


def write_captions(path: Path, captions: Iterable[str]) -> int:
    """Writes captions as one Arrow file, whole; returns how many."""
    schema = pa.schema([("caption", pa.string())])
    count = 0
    with written_whole(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        rows: list[str] = []
        for caption in captions:
            rows.append(caption)
            count += 1
            if len(rows) == ROWS_PER_BATCH:
                writer.write_batch(pa.record_batch([rows], schema=schema))
                rows = []
        if rows:
            writer.write_batch(pa.record_batch([rows], schema=schema))
    return count


class Captions:
    """Memory-mapped captions by number."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError naming the file when it is missing or damaged."""
        self.path = path
        try:
            self._column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"captions {path}: cannot be read ({error}); build them again") from None

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> str:
        return self._column[index].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            yield from chunk.to_pylist()

    def __reduce__(self) -> tuple[type["Captions"], tuple[Path]]:
        return Captions, (self.path,)  # a loader worker maps the file itself
