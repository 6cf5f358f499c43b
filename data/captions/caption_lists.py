"""Lists of captions out of caption sources, in memory: for what is drawn or evaluated, not for the pool."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from randcond.data.captions.readers import read_batches
from randcond.data.captions.sources import expand
from randcond.launch.errors import UserError


def read_source(source: str) -> Iterator[str]:
    """Captions of one source (a file, a folder, a glob), cleaned, without empty ones.

    Raises UserError naming the file when it is missing, of an unknown kind, damaged or without a caption column.
    """
    for file in expand(source):
        for captions, _ in read_batches(file):
            yield from captions.to_pylist()


def read_unique(sources: Iterable[str], damaged: list[str] | None = None) -> tuple[list[str], dict[str, int]]:
    """The distinct non-empty captions of all sources in their order, and how many were dropped by reason.

    In memory: for what is drawn or evaluated, not for the pool. `damaged`: takes what is wrong with a file, whose
    captions before that count. Raises UserError naming a source without any caption, and, without it, a damaged file.
    """
    found: dict[str, None] = {}
    dropped: Counter[str] = Counter()
    for source in sources:
        read = 0
        for file in expand(source):
            try:
                for captions, lost in read_batches(file):
                    dropped += lost
                    before = len(found)
                    found.update(dict.fromkeys(captions.to_pylist()))
                    dropped["duplicate"] += len(captions) - (len(found) - before)
                    read += len(captions)
            except UserError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
        if not read:
            raise UserError(f"caption source {source}: holds no caption")
    return list(found), {reason: number for reason, number in dropped.items() if number}


def names_any(words: list[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words as a whole word, whatever its case."""
    return re.compile(r"\b(" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE) if words else re.compile("(?!)")
