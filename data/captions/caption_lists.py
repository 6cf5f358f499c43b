"""Reads captions from caption sources into memory, for caching and evaluation. The pool is too large for this."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from randcond.data.captions.readers import read_batches
from randcond.data.captions.sources import expand
from randcond.data.rows.bad_rows import BadRows, summary
from randcond.launch.errors import UserError
from randcond.launch.urls import hide_secrets


def read_source(source: str) -> Iterator[str]:
    """Yields the cleaned, non-empty captions of one source (a file, folder, glob or URL).

    Raises UserError if a file is missing or damaged, has an unknown type or has no caption column.
    """
    for file in expand(source):
        for captions, _ in read_batches(file):
            yield from captions.to_pylist()


def read_unique(sources: Iterable[str], damaged: list[str] | None = None) -> tuple[list[str], dict[str, int]]:
    """Returns the distinct non-empty captions of all sources, in order, and the number of dropped rows by reason.

    `damaged`: a list that collects one line per damaged file; the captions before the damage, and the rows that are not
    bad, are used. Without this list, a damaged file or a bad row raises UserError. Also raises UserError if a source
    contains no captions.
    """
    unique: dict[str, None] = {}
    dropped: Counter[str] = Counter()
    for source in sources:
        count = 0
        for file in expand(source):
            bad = BadRows(f"caption source {file}", skip=damaged is not None)
            try:
                for captions, dropped_rows in read_batches(file, bad=bad):
                    dropped += dropped_rows
                    before = len(unique)
                    unique.update(dict.fromkeys(captions.to_pylist()))
                    dropped["duplicate"] += len(captions) - (len(unique) - before)
                    count += len(captions)
            except UserError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
            if damaged is not None and bad.quotes:
                damaged.append(hide_secrets(summary(bad.where, bad.quotes, bad.total)))
        if not count:
            raise UserError(f"caption source {source}: contains no captions")
    return list(unique), {reason: number for reason, number in dropped.items() if number}


def names_any(words: list[str]) -> re.Pattern[str]:
    """Returns a pattern that matches any of the words as a whole word, ignoring case. No words: matches nothing.

    >>> bool(names_any(["cat"]).search("A Cat, asleep")), bool(names_any(["cat"]).search("a category"))
    (True, False)
    """
    return re.compile(r"\b(" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE) if words else re.compile("(?!)")
