"""WordNet's nouns, out of its own database files (Debian's wordnet-base, nltk's corpora/wordnet, Princeton's dict).

In: a folder with index.noun, data.noun and noun.exc. Out: nouns by depth, and the words for a concept.
"""

import os
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from randcond.launch.errors import UserError

ROOT = "entity"
_PLACES = ("inputs/wordnet", "/usr/share/wordnet", "/usr/local/share/wordnet", "~/nltk_data/corpora/wordnet")


def find_wordnet(folder: str = "") -> Path:
    """The folder of WordNet's files: in the one given, $WNSEARCHDIR, or where `fetch`, Debian and nltk keep it.

    Raises UserError saying how to get it.
    """
    places = [
        Path(place).expanduser()
        for place in ([folder] if folder else [os.environ.get("WNSEARCHDIR"), *_PLACES])
        if place
    ]
    for place in places:
        if found := next(iter(sorted(place.rglob("data.noun"))), None):
            return found.parent
    raise UserError(
        f"no data.noun in {', '.join(map(str, places))}: `randcond fetch wordnet`, `apt-get install wordnet-base`, "
        f"or nltk.download('wordnet') and unpack it; --wordnet names the folder that holds it"
    )


class WordNet:
    """Nouns of WordNet 3.x: synsets are named by their offset in data.noun."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError naming a damaged file."""
        self.folder = folder
        self.words: dict[str, list[str]] = {}  # synset -> its lemmas, as written, blanks for underscores
        self.above: dict[str, list[str]] = {}  # synset -> its hypernyms; an instance (Paris) has none of these
        for line in self._lines("data.noun"):
            try:
                fields = line.split(" | ")[0].split()
                count = int(fields[3], 16)
                pointers = fields[5 + 2 * count :]
                self.words[fields[0]] = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
                self.above[fields[0]] = [pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] == "@"]
            except (IndexError, ValueError):
                raise UserError(f"{folder / 'data.noun'}: not a line of WordNet's: {line[:80]!r}") from None

    def _lines(self, name: str) -> list[str]:
        try:
            lines = (self.folder / name).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.folder / name}: {error}; is this WordNet's folder?") from None
        return [line for line in lines if line and not line.startswith(" ")]  # the licence is indented

    @cached_property
    def senses(self) -> dict[str, list[str]]:
        """Lower-case noun -> its synsets, the most frequent sense first."""
        found = {}
        for line in self._lines("index.noun"):
            fields = line.split()
            found[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
        return found

    @cached_property
    def _below(self) -> dict[str, list[str]]:
        """Synset -> its hyponyms."""
        below: dict[str, list[str]] = defaultdict(list)
        for synset, hypernyms in self.above.items():
            for hypernym in hypernyms:
                below[hypernym].append(synset)
        return below

    def depths(self, top: str) -> dict[str, int]:
        """The kinds of a synset, itself included -> steps on the shortest way up to it; instances are not in it."""
        level, steps = [top], 0
        depths = {top: 0}
        while level:
            steps += 1
            level = [each for synset in level for each in self._below[synset] if each not in depths]
            depths.update(dict.fromkeys(level, steps))
        return depths

    def nouns(self, depth: int) -> list[str]:
        """The nouns with a sense at most `depth` below "entity", in the order of the alphabet; no proper names."""
        kinds = self.depths(self.senses[ROOT][0])
        return sorted({word for synset, at in kinds.items() if at <= depth for word in self.words[synset]})

    def under(self, concept: str) -> set[str]:
        """Nouns whose most frequent sense is a kind of `concept` (in its own most frequent sense), itself included.

        Words known for something else are left out: "jack" is a fish, but first a tool.
        Raises UserError when WordNet has no such noun.
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
        """A noun's plural: WordNet's irregular one, or by the rules of spelling."""
        first, blank, last = noun.rpartition(" ")
        if last in self._irregular:
            return first + blank + self._irregular[last]
        if re.search(r"[^aeiou]y$", last):
            return noun[:-1] + "ies"
        return noun + ("es" if re.search(r"(s|x|z|ch|sh)$", last) else "s")
