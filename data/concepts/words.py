"""Finds the words of a list in captions."""

import re
from collections.abc import Iterable
from pathlib import Path

from randcond.data.rows.tables import read_lines
from randcond.launch.config.paths import PACKAGE
from randcond.launch.errors import UserError

ANIMALS = PACKAGE / "data/concepts/animals.txt"
_PART = re.compile(r"[^\W_]+")


class WordList:
    """A list of words and phrases to find in captions, ignoring case.

    Everything except letters and digits separates words, so "cat-like" is two words.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = {tuple(_PART.findall(word.lower())): word for word in words}
        self._words.pop((), None)
        self._longest = max(map(len, self._words), default=0)

    def __len__(self) -> int:
        return len(self._words)

    def find(self, caption: str) -> str | None:
        """Returns the first entry of the list that occurs in a caption, or None. At one position the longest wins."""
        parts = _PART.findall(caption.lower())
        for start in range(len(parts)):
            for length in range(min(self._longest, len(parts) - start), 0, -1):
                if (word := self._words.get(tuple(parts[start : start + length]))) is not None:
                    return word
        return None


def read_words(path: Path) -> WordList:
    """Reads a word list: one word per line, `#` starts a comment line. Raises UserError if it is missing or empty."""
    lines = read_lines(path, f"word list {path}")
    words = WordList(line for line in lines if line and not line.startswith("#"))
    if not len(words):
        raise UserError(f"word list {path}: contains no words")
    return words
