"""Reads nouns from WordNet's database files (Debian's wordnet-base, nltk's corpora/wordnet, Princeton's dict).

In: a folder with index.noun, data.noun and noun.exc. Out: nouns by depth, and the words for a concept.
"""

import os
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from randcond.launch.errors import UserError

ROOT = "entity"
_FOLDERS = ("inputs/wordnet", "/usr/share/wordnet", "/usr/local/share/wordnet", "~/nltk_data/corpora/wordnet")


def find_wordnet(folder: str = "") -> Path:
    """Returns the folder that contains WordNet's files.

    Searches below `folder` if it is given. Otherwise searches below $WNSEARCHDIR, inputs/wordnet (`randcond fetch`),
    and the folders of Debian and nltk. Raises UserError if nothing is found.
    """
    folders = [
        Path(candidate).expanduser()
        for candidate in ([folder] if folder else [os.environ.get("WNSEARCHDIR"), *_FOLDERS])
        if candidate
    ]
    for candidate in folders:
        if data := next(iter(sorted(candidate.rglob("data.noun"))), None):
            return data.parent
    raise UserError(
        f"no data.noun in {', '.join(map(str, folders))}: get WordNet with `randcond fetch wordnet`, `apt-get install "
        f"wordnet-base` or nltk.download('wordnet') and unzip, or give its folder with --wordnet"
    )


class WordNet:
    """The nouns of WordNet 3.x. A synset is identified by its offset in data.noun."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if a file is missing or damaged."""
        self.folder = folder
        self.words: dict[str, list[str]] = {}  # synset -> its lemmas, with spaces instead of underscores
        self.above: dict[str, list[str]] = {}  # synset -> its hypernyms; none for an instance such as Paris
        for line in self._lines("data.noun"):
            try:
                fields = line.split(" | ")[0].split()
                count = int(fields[3], 16)
                pointers = fields[5 + 2 * count :]
                self.words[fields[0]] = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
                self.above[fields[0]] = [pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] == "@"]
            except (IndexError, ValueError):
                raise UserError(f"{folder / 'data.noun'}: not in WordNet's format: {line[:80]!r}") from None
        self.senses = self._senses()  # lower-case noun -> its synsets, the most frequent sense first
        self._check_whole()

    def _check_whole(self) -> None:
        """Raises UserError if a file lacks what the other one names: it was cut, or is of another version."""
        remedy = "the file is incomplete or of another version; get WordNet again (`randcond fetch wordnet`)"
        for synset, hypernyms in self.above.items():
            if missing := [hypernym for hypernym in hypernyms if hypernym not in self.words]:
                raise UserError(
                    f"{self.folder / 'data.noun'}: synset {synset} is a kind of {missing[0]}, which it lacks; {remedy}"
                )
        for noun, synsets in self.senses.items():
            if missing := [synset for synset in synsets if synset not in self.words]:
                raise UserError(
                    f"{self.folder / 'data.noun'}: lacks synset {missing[0]}, which index.noun names for {noun!r}; "
                    f"{remedy}"
                )
        for synset, words in self.words.items():
            if unlisted := [word for word in words if word.lower() not in self.senses]:
                raise UserError(
                    f"{self.folder / 'index.noun'}: lacks {unlisted[0]!r}, which data.noun has as synset {synset}; "
                    f"{remedy}"
                )

    def _lines(self, name: str) -> list[str]:
        try:
            text = (self.folder / name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.folder / name}: {error}; check that this is WordNet's folder") from None
        lines = text.splitlines()
        if not text.endswith("\n"):
            last = lines[-1][:80] if lines else ""
            raise UserError(f"{self.folder / name}: ends in the middle of a line, {last!r}; get WordNet again")
        return [line for line in lines if line and not line.startswith(" ")]  # skips the licence, which is indented

    def _senses(self) -> dict[str, list[str]]:
        """Reads index.noun. Raises UserError naming a line that is not in WordNet's format."""
        senses = {}
        for line in self._lines("index.noun"):
            fields = line.split()
            try:
                synsets = fields[-int(fields[2]) :]
                if len(fields) < 6 or not all(synset.isdigit() for synset in synsets):
                    raise ValueError
            except (IndexError, ValueError):
                raise UserError(f"{self.folder / 'index.noun'}: not in WordNet's format: {line[:80]!r}") from None
            senses[fields[0].replace("_", " ")] = synsets
        return senses

    @cached_property
    def _below(self) -> dict[str, list[str]]:
        """Synset -> its hyponyms."""
        below: dict[str, list[str]] = defaultdict(list)
        for synset, hypernyms in self.above.items():
            for hypernym in hypernyms:
                below[hypernym].append(synset)
        return below

    def depths(self, top: str) -> dict[str, int]:
        """Returns `top` and all its direct and indirect hyponyms -> their distance from `top` on the shortest path.

        Instances are not included.
        """
        level, steps = [top], 0
        depths = {top: 0}
        while level:
            steps += 1
            level = [hyponym for synset in level for hyponym in self._below[synset] if hyponym not in depths]
            depths.update(dict.fromkeys(level, steps))
        return depths

    def nouns(self, depth: int) -> list[str]:
        """Returns the nouns with a sense at most `depth` levels below "entity", sorted, without proper names."""
        depths = self.depths(self.senses[ROOT][0])
        return sorted({word for synset, steps in depths.items() if steps <= depth for word in self.words[synset]})

    def under(self, concept: str) -> set[str]:
        """Returns the nouns whose most frequent sense is a kind of `concept`, including `concept` itself.

        `concept` is taken in its most frequent sense. Words with another main sense are left out: "jack" is a fish, but
        its most frequent sense is a tool. Raises UserError if WordNet has no such noun.
        """
        if concept.lower() not in self.senses:
            raise UserError(f"WordNet has no noun {concept!r}")
        kinds = self.depths(self.senses[concept.lower()][0])
        return {
            word for synset in kinds for word in self.words[synset] if self.senses.get(word.lower(), [""])[0] == synset
        }

    @cached_property
    def _irregular(self) -> dict[str, str]:
        pairs = [line.split() for line in self._lines("noun.exc")]
        return {pair[1]: pair[0].replace("_", " ") for pair in reversed(pairs) if len(pair) > 1}

    def plural(self, noun: str) -> str:
        """Returns the plural of a noun: WordNet's irregular form if there is one, else by the spelling rules."""
        first, blank, last = noun.rpartition(" ")
        if last in self._irregular:
            return first + blank + self._irregular[last]
        if re.search(r"[^aeiou]y$", last):
            return noun[:-1] + "ies"
        return noun + ("es" if re.search(r"(s|x|z|ch|sh)$", last) else "s")
