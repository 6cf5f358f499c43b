"""Which rows of a caption source are taken, and how a caption is cleaned."""

import re
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from randcond.launch.config.sections import Pool

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


def settings(rows: RowFilter) -> dict[str, Any]:
    """The filter as plain data, what is not asked for left out."""
    plain = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items() if value}
