"""Filters the rows of a caption source and cleans captions."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from randcond.launch.config.sections import Pool

# Whether this pyarrow's NFC joins a letter and its accent. Versions before 26 don't.
_COMPOSES = pc.utf8_normalize(pa.array(["u\u0308"]), form="NFC")[0].as_py() == "\u00fc"
_BLANK = r"[\p{Z}\p{Cc}]+"  # Unicode spaces, line breaks and control characters


@dataclass(frozen=True)
class RowFilter:
    """The conditions that a row must meet to be used. 0 or an empty tuple: no such condition."""

    min_length: int = 1  # minimum number of characters of the cleaned caption
    max_length: int = 1000  # maximum number of characters; 0: no limit
    nsfw: tuple[str, ...] = ()  # accepted values of the column NSFW
    min_similarity: float = 0.0  # minimum of the column similarity (CLIP similarity of caption and image)
    min_width: int = 0  # minimum of the column WIDTH, in pixels
    min_height: int = 0  # minimum of the column HEIGHT, in pixels
    naming: tuple[str, ...] = ()  # the caption must contain at least one of these words, ignoring case

    def columns(self) -> dict[str, str]:
        """Returns the columns that this filter reads -> the setting that needs the column."""
        setting_of = {"NSFW": "nsfw", "similarity": "min_similarity", "WIDTH": "min_width", "HEIGHT": "min_height"}
        return {column: setting for column, setting in setting_of.items() if getattr(self, setting)}


UNFILTERED = RowFilter(max_length=0)  # drops only empty captions


def row_filter(pool: Pool, excluded: list[str]) -> RowFilter:
    """Returns the filter of an experiment's `pool:` section. `excluded`: the words of cache.exclude."""
    conditions = {
        field.name: _hashable(getattr(pool, field.name)) for field in fields(RowFilter) if field.name != "naming"
    }
    return RowFilter(**conditions, naming=tuple(excluded) if pool.excluded_only else ())


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def select(batch: pa.RecordBatch, rows: RowFilter) -> tuple[pa.StringArray, Counter[str]]:
    """Returns the cleaned captions of a batch that pass the filter, and the number of dropped rows by reason.

    Each dropped row is counted once, under the first reason.
    """
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
        # Equivalent to names_any() in caption_lists.py. RE2's \b supports only ASCII.
        pattern = rf"(?i)(?:^|[^\p{{L}}\p{{N}}_])({words})(?:$|[^\p{{L}}\p{{N}}_])"
        drop("other words", ~pc.match_substring_regex(captions, pattern).to_numpy(zero_copy_only=False))
    if rows.nsfw:
        accepted = pc.is_in(batch.column("NSFW"), value_set=pa.array(rows.nsfw)).to_numpy(zero_copy_only=False)
        drop("nsfw", ~accepted)
    if rows.min_similarity:
        drop("similarity", ~(column("similarity") >= rows.min_similarity))  # "not >=" also drops NaN
    if rows.min_width:
        drop("width", ~(column("WIDTH") >= rows.min_width))
    if rows.min_height:
        drop("height", ~(column("HEIGHT") >= rows.min_height))
    return captions.filter(pa.array(keep)), dropped


def clean(captions: pa.Array) -> pa.StringArray:
    """Cleans an array of captions [n]: each becomes one line of text in Unicode NFC; null becomes "".

    Control characters and runs of white space become one space. Leading and trailing space is removed.
    """
    text = _composed(pc.fill_null(captions, ""))
    return pc.utf8_trim(pc.replace_substring_regex(text, _BLANK, " "), " ")


def _composed(text: pa.Array) -> pa.Array:
    """Returns texts [n] in Unicode NFC, by pyarrow where it can."""
    if _COMPOSES:
        return pc.utf8_normalize(text, form="NFC")
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    foreign = pc.invert(pc.string_is_ascii(text))
    composed = [unicodedata.normalize("NFC", each) for each in text.filter(foreign).to_pylist()]
    return pc.replace_with_mask(text, foreign, pa.array(composed, text.type))


def clean_text(caption: str) -> str:
    """Cleans one caption, as `clean` does.

    >>> clean_text("  two   dogs\\tplay ")
    'two dogs play'
    """
    return clean(pa.array([caption], pa.string()))[0].as_py()


def settings(rows: RowFilter) -> dict[str, Any]:
    """Returns the filter as plain data, without the settings that filter nothing (0, empty)."""
    plain = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items() if value}


def absent_filters() -> dict[str, Any]:
    """Returns `filter.KEY` -> the value to assume if a stored pool does not contain this key.

    The settings in _FIRST_SETTINGS are not stored if they filter nothing. A setting that was added later is missing
    from older pools, which were built with its default.
    """
    return {f"filter.{field.name}": field.default for field in fields(RowFilter) if field.name not in _FIRST_SETTINGS}


_FIRST_SETTINGS = ("min_length", "max_length", "nsfw", "min_similarity", "min_width", "min_height", "naming")
