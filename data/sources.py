"""Reads caption sources, local or remote, in batches of constant size: parquet, csv, jsonl, txt, plain or compressed.

In: a file, a folder, a glob or a URL that fsspec opens. Out: record batches of raw captions and the columns that rows
are filtered by; then cleaned captions, and how many were dropped for which reason.
"""

import codecs
import csv
import errno
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from randcond.data.fetch import ask, fetch, is_web, open_system
from randcond.data.files import sha256
from randcond.data.inputs import MissingInput, missing_input
from randcond.launch.config import is_url
from randcond.launch.sections import Pool

COLUMNS = ("caption", "TEXT", "text")
KINDS = (".txt", ".csv", ".jsonl", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
BATCH = 65_536
_BLANK = r"[\p{Z}\p{Cc}]+"  # spaces of every script, line ends, control characters


@dataclass(frozen=True)
class RowFilter:
    """Which rows of a source are taken; what is left at its default is not asked for."""

    min_length: int = 1  # characters of the cleaned caption
    max_length: int = 1000  # 0: any
    nsfw: tuple[str, ...] = ()  # accepted values of the column NSFW
    min_similarity: float = 0.0  # column similarity: CLIP's, of caption and image
    min_width: int = 0  # columns WIDTH and HEIGHT: of the image
    min_height: int = 0
    naming: tuple[str, ...] = ()  # at least one of these words, whatever its case

    def columns(self) -> dict[str, str]:
        """The columns that this filter needs -> the setting that asks for it."""
        asked = {"NSFW": "nsfw", "similarity": "min_similarity", "WIDTH": "min_width", "HEIGHT": "min_height"}
        return {column: setting for column, setting in asked.items() if getattr(self, setting)}


WHOLE = RowFilter(max_length=0)  # of a list that is taken as it is: all but empty rows


def row_filter(pool: Pool, excluded: list[str]) -> RowFilter:
    """The filter that an experiment's `pool:` section asks for; `excluded`: the words of its cache.exclude."""
    named = {field.name: _hashable(getattr(pool, field.name)) for field in fields(RowFilter) if field.name != "naming"}
    return RowFilter(**named, naming=tuple(excluded) if pool.excluded_only else ())


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def expand(source: str) -> list[str]:
    """The caption files a source stands for, in a fixed order: itself, a folder's or a glob's.

    Raises ValueError naming a source that stands for none.
    """
    system, path = open_system(source)
    if any(sign in path for sign in ("*[" if is_web(source) else "*?[")):
        found = sorted(each for each in ask(source, lambda: system.glob(path)) if kind_of(each))
    elif ask(source, lambda: system.isdir(path)):
        found = sorted(each for each in ask(source, lambda: system.find(path)) if kind_of(each))
    else:
        if not ask(source, lambda: system.exists(path)):
            raise MissingInput(f"caption source {source}: no such file{missing_input(source)}")
        if not kind_of(path):
            known = ", ".join(KINDS)
            raise ValueError(f"caption source {source}: unknown kind {PurePosixPath(path).suffix!r}; known: {known}")
        return [source]
    if not found:
        kinds = ", ".join(KINDS)
        raise MissingInput(f"caption source {source}: holds no file of a known kind ({kinds}){missing_input(source)}")
    local = "file" in system.protocol
    return [each if local else system.unstrip_protocol(each) for each in found]


def identify(source: str) -> dict[str, Any]:
    """What tells one source file from another: its bytes' sha256, or what a server says of them."""
    system, path = open_system(source)
    name = _name(path)
    if "file" in system.protocol:
        return {"name": name, "sha256": sha256(Path(path))}
    facts = ask(source, lambda: system.info(path))
    said = {key: str(facts[key]) for key in ("ETag", "etag", "LastModified", "mtime") if facts.get(key)}
    return {"name": name, "url": source, "size": facts.get("size"), **said}


def _name(path: str) -> str:
    """The last part of a path; of a web address without its query."""
    return PurePosixPath(path.partition("?")[0] if is_web(path) else path).name


def kind_of(path: str) -> str | None:
    """The kind of a caption file by its name, compression aside."""
    name = PurePosixPath(_name(path))
    name = name.with_suffix("") if name.suffix in COMPRESSED else name
    return name.suffix if name.suffix in KINDS else None


def read_batches(source: str, rows: RowFilter = WHOLE) -> Iterator[tuple[pa.StringArray, Counter[str]]]:
    """Cleaned captions of one file, batch by batch, with how many rows of it were dropped by reason.

    Raises ValueError naming the file, and the line or row where it can: no such column, not text or UTF-8, damaged;
    OSError where not the file is damaged but what it comes over (a server, a disk, a file system) fails.
    """
    done = 0
    try:
        for batch in _raw_batches(source, rows):
            yield select(batch, rows)
            done += batch.num_rows
    except UnicodeDecodeError as error:
        raise ValueError(f"caption source {source}, after row {done}: not UTF-8 ({error.reason})") from None
    except Exception as error:  # whatever a library calls a damaged file
        if isinstance(error, ValueError) and str(error).startswith("caption source"):
            raise
        if isinstance(error, ConnectionError | TimeoutError) and error.errno is None:
            raise  # it names its address
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # of a decompressor: no number
            raise OSError(error.errno, f"caption source {source}, after row {done}: {error.strerror}") from None
        raise ValueError(f"caption source {source}, after row {done}: {error or type(error).__name__}") from None


def select(batch: pa.RecordBatch, rows: RowFilter) -> tuple[pa.StringArray, Counter[str]]:
    """The captions of a batch that pass the filter, cleaned; what was dropped, each row counted under one reason."""
    captions = clean(batch.column("caption"))
    dropped: Counter[str] = Counter()
    keep = np.ones(len(captions), dtype=bool)
    length = pc.utf8_length(captions).to_numpy(zero_copy_only=False)

    def drop(reason: str, bad: np.ndarray) -> None:
        if number := int((keep & bad).sum()):
            dropped[reason] += number
        np.logical_and(keep, ~bad, out=keep)

    def column(name: str) -> np.ndarray:
        return pc.fill_null(pc.cast(batch.column(name), pa.float64()), -np.inf).to_numpy(zero_copy_only=False)

    drop("empty", length == 0)
    drop("too short", length < rows.min_length)
    if rows.max_length:
        drop("too long", length > rows.max_length)
    if rows.naming:
        words = "|".join(map(re.escape, rows.naming))
        # As data/captions.py's names_any; RE2's own \b knows ASCII alone.
        pattern = rf"(?i)(?:^|[^\p{{L}}\p{{N}}_])({words})(?:$|[^\p{{L}}\p{{N}}_])"
        drop("other words", ~pc.match_substring_regex(captions, pattern).to_numpy(zero_copy_only=False))
    if rows.nsfw:
        accepted = pc.is_in(batch.column("NSFW"), value_set=pa.array(rows.nsfw)).to_numpy(zero_copy_only=False)
        drop("nsfw", ~accepted)
    if rows.min_similarity:
        drop("similarity", ~(column("similarity") >= rows.min_similarity))  # neither is what is no number
    if rows.min_width:
        drop("width", ~(column("WIDTH") >= rows.min_width))
    if rows.min_height:
        drop("height", ~(column("HEIGHT") >= rows.min_height))
    return captions.filter(pa.array(keep)), dropped


def clean(captions: pa.Array) -> pa.StringArray:
    """One line each: NFC, control characters and runs of white space as one space, none at the ends; null as ""."""
    text = pc.utf8_normalize(pc.fill_null(captions, ""), form="NFC")
    return pc.utf8_trim(pc.replace_substring_regex(text, _BLANK, " "), " ")


def clean_text(caption: str) -> str:
    """The same for one caption."""
    return clean(pa.array([caption], pa.string()))[0].as_py()


def _raw_batches(source: str, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    reader = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[kind_of(source) or ".txt"]
    with TemporaryDirectory(prefix="randcond-") as folder:
        # A server's file is brought whole, over cuts, and read from there.
        here = str(fetch(source, Path(folder) / _name(source))) if is_url(source) else source
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
                raise ValueError(
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
                raise ValueError(f"caption source {source}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"caption source {source}, line {number}: is no object")
            found = columns or _find_columns(source, list(row), rows)
            columns.update(found)
            if missing := [theirs for theirs in found.values() if theirs not in row]:
                raise ValueError(f"caption source {source}, line {number}: has no {missing[0]}")
            yield tuple(row[theirs] for theirs in found.values())

    yield from _batched(source, ["caption", *rows.columns()], lines())


def _parquet(source: str, file: Any, rows: RowFilter) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(file)
    columns = _find_columns(source, opened.schema_arrow.names, rows)
    for batch in opened.iter_batches(batch_size=BATCH, columns=list(columns.values())):
        captions = batch.column(columns["caption"])
        if not (pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type)):
            raise ValueError(f"caption source {source}: column {columns['caption']} is {captions.type}, not text")
        arrays = [batch.column(theirs) for theirs in columns.values()]
        arrays[0] = pc.cast(arrays[0], pa.string())
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _find_columns(source: str, names: Iterable[str], rows: RowFilter) -> dict[str, str]:
    """Our name -> the source's own (whatever its case) of the caption and of each column the filter needs."""
    own = list(names)
    captions = [column for column in COLUMNS if column in own]
    if not captions:
        raise ValueError(f"caption source {source}: no column {' or '.join(COLUMNS)}; it has {', '.join(own)}")
    lower = {name.lower(): name for name in own}
    for column, setting in rows.columns().items():
        if column.lower() not in lower:
            raise ValueError(
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
            raise ValueError(f"caption source {source}, row {row}: {name} is not {kind}") from None
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _fine(name: str, value: Any) -> bool:
    if name in ("caption", "NSFW"):
        return value is None or (isinstance(value, str) and value == value.encode(errors="replace").decode())
    try:
        return value in (None, "") or float(value) is not None
    except (TypeError, ValueError, OverflowError):
        return False


def settings(rows: RowFilter) -> dict[str, Any]:
    """The filter as plain data, what is not asked for left out."""
    plain = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items() if value}
