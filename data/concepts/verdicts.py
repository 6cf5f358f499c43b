"""Reads the judge's answers: matches each verdict to the caption that it is about, and leaves out what is uncertain."""

import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from randcond.data.concepts.words import WordList

_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "louse": "lice", "ox": "oxen", "man": "men", "woman": "women",
    "child": "children", "person": "people", "foot": "feet", "tooth": "teeth",
}  # fmt: skip
_ENDINGS = (("", "s"), ("", "es"), ("y", "ies"), ("f", "ves"), ("fe", "ves"))  # singular, plural
_ENTRIES = 10_000  # dictionaries that are read in one answer
_LONGEST_REASON = 200  # characters
_QUOTED = re.compile(r"(?<!\w)(?:\"([^\"]+)\"|'([^']+)'|`([^`]+)`|“([^”]+)”|‘([^’]+)’|«([^»]+)»|\*\*(.+?)\*\*)(?!\w)")
_BETWEEN_PHRASES = re.compile(  # signs and words between the word that was found and what is said about it
    r"[,;:/&|()\[\]\n]|[-=]+>|[→⇒=–—]|\s-\s|\b(?:and|or|is|are|was|were|refers?|means?|denotes?|indicates?|describes?|names?"
    r"|represents?|implies|mentions?|mentioned|contains?|includes?|which|that|as|because|since|meaning|being|in)\b"
)
_BEFORE_A_WORD = re.compile(
    r"^[\W_]*(?:(?:the|this|it|an?|words?|terms?|nouns?|sentence|caption|reason|reference|presence|to|of)\b[\W_]*)+"
)


class Verdict(NamedTuple):
    """The language model's verdict on one caption."""

    unseen: bool
    word: str  # the word in the caption that led to the verdict
    match: str = (
        ""  # how it was matched to the caption: alone, id, sentence, word; empty in older journals: by position
    )


def read_verdict(answer: str, keys: tuple[str, ...], caption: str) -> Verdict | None:
    """Parses the answer to a question about one caption. Returns None if it has no certain verdict.

    The answer is JSON with one entry, or several that say the same. A yes must give a reason that the caption contains.
    `keys`: the names of the entry with yes or no.
    """
    entries = [_Entry.of(entry, keys) for entry in _dictionaries(answer, keys)]
    if not entries or None in entries or len({entry.unseen for entry in entries if entry}) > 1:
        return None
    return next((entry.verdict("alone") for entry in entries if entry and entry.holds_for(caption, keys)), None)


def read_verdicts(answer: str, keys: tuple[str, ...], captions: Mapping[str, str]) -> dict[str, Verdict]:
    """Parses the answer to a question about several captions. Returns id -> verdict where the match is certain.

    A match is certain by the id; without an id in the entry by the caption that the entry repeats; without both by the
    reason, if only one caption contains it. No second entry may claim the caption. A yes must give a reason that the
    caption contains. A no is doubted if its caption contains the reason of a yes in the same answer: the two may have
    changed places. An answer that was cut off counts as far as its entries are complete.

    `keys`: the names of the entry with yes or no. `captions`: id -> caption.
    """
    claims = [
        (caption_id, how, entry)
        for data in _dictionaries(answer, keys)
        if (entry := _Entry.of(data, keys))
        for caption_id, how in _claims(entry, captions, keys)
    ]
    times = Counter(caption_id for caption_id, _, _ in claims)
    reasons = [entry.reason for _, _, entry in claims if entry.unseen]
    verdicts = {}
    for caption_id, how, entry in claims:
        caption = captions[caption_id]
        doubted = not entry.unseen and any(names(reason, caption, keys) for reason in reasons)
        if times[caption_id] == 1 and entry.holds_for(caption, keys) and not doubted:
            verdicts[caption_id] = entry.verdict(how)
    return verdicts


class _Entry(NamedTuple):
    """One dictionary of an answer."""

    unseen: bool
    reason: str
    id: str | None  # None: it has none
    others: list[str]  # its other texts: a caption that it repeats

    @classmethod
    def of(cls, data: dict[str, Any], keys: tuple[str, ...]) -> "_Entry | None":
        """Returns None if the entry does not say yes or no."""
        fields = {plain_key(key): value for key, value in data.items()}
        said = next(fields[key] for key in keys if key in fields)
        if isinstance(said, bool):
            said = "yes" if said else "no"
        word = str(said).strip(" .!\"'*").lower()
        if word not in ("yes", "no"):
            return None
        reason = fields.get("reason")
        reason = ", ".join(map(str, reason)) if isinstance(reason, list) else reason
        others = [value for name, value in fields.items() if isinstance(value, str) and name not in (*keys, "reason")]
        identity = str(fields["id"]).strip().lower() if "id" in fields else None
        return cls(word == "yes", reason if isinstance(reason, str) else "", identity, others)

    def verdict(self, how: str) -> Verdict:
        """Returns the verdict. `how`: how the entry was matched."""
        return Verdict(self.unseen, self.reason if self.unseen else "", how)

    def holds_for(self, caption: str, keys: tuple[str, ...]) -> bool:
        """Returns False for a yes whose reason is not in the caption."""
        return not self.unseen or names(self.reason, caption, keys)


def _claims(entry: _Entry, captions: Mapping[str, str], keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yields the id of the caption that an entry is about, and how that is known."""
    repeated = {_folded(text) for text in entry.others}
    sentences = [caption_id for caption_id, caption in captions.items() if _folded(caption) in repeated]
    if entry.id is not None:
        if entry.id in captions and (not sentences or entry.id in sentences):
            yield entry.id, "id"
    elif sentences:
        if len(sentences) == 1:
            yield sentences[0], "sentence"
    elif entry.unseen:
        named = [caption_id for caption_id, caption in captions.items() if names(entry.reason, caption, keys)]
        if len(named) == 1:
            yield named[0], "word"


def names(reason: str, caption: str, keys: tuple[str, ...] = ()) -> bool:
    """Returns True if a caption contains a reason: a word or phrase of it, in the singular or plural.

    Of a reason with quotes only what is quoted counts, else each of its phrases. `keys`: the names of the entry with
    yes or no, which end with the concept. Its own name counts only if the reason has no other word: "fox -> animal".

    >>> names("dog", "two dogs"), names("a wolf, or a dog", "wolves at night"), names("dog", "a hot day")
    (True, True, False)
    >>> names("The word 'horses' refers to an animal", "a horse"), names("fox -> animal", "an animal", ("has_animal",))
    (True, False)
    """
    reason = reason[:_LONGEST_REASON].lower()
    phrases = ["".join(groups) for groups in _QUOTED.findall(reason)] or _BETWEEN_PHRASES.split(reason)
    words = [word for phrase in phrases if re.search(r"\w", word := _BEFORE_A_WORD.sub("", phrase).strip())]
    concept = {key.partition("_")[2].replace("_", " ") for key in keys}
    words = [word for word in words if word not in concept] or words
    forms = [form for word in words for form in _forms(word)]
    return bool(forms) and WordList(forms).find(caption) is not None


def _forms(phrase: str) -> Iterator[str]:
    """Yields a phrase, its plurals and its singulars, right ones and wrong ones."""
    phrase = phrase.strip("\"'“”‘’`.!* ")
    last = phrase.split()[-1]
    start = phrase[: -len(last)]
    yield phrase
    for pair in _IRREGULAR.items():
        if last in pair:
            yield from (start + word for word in pair)
    for singular, plural in _ENDINGS:
        if last.endswith(singular):
            yield start + last.removesuffix(singular) + plural
        if last.endswith(plural) and len(last) - len(plural) >= 3:
            yield start + last.removesuffix(plural) + singular


def _dictionaries(answer: str, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields the dictionaries with one of the keys. Text around them, and what follows a cut, is passed over."""
    decoder, position = json.JSONDecoder(), 0
    for _ in range(_ENTRIES):
        position = answer.find("{", position)
        if position < 0:
            return
        try:
            data, position = decoder.raw_decode(answer, position)
        except RecursionError:
            return
        except ValueError:
            position += 1
            continue
        yield from _with_a_key(data, keys)


def _with_a_key(data: Any, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    waiting = deque([data])
    while waiting:
        each = waiting.popleft()
        if isinstance(each, dict) and any(plain_key(key) in keys for key in each):
            yield each
        elif isinstance(each, dict | list):
            waiting.extendleft(reversed(list(each.values()) if isinstance(each, dict) else each))


def plain_key(key: str) -> str:
    """Returns a key in lower case, with one underscore in place of each run of other signs.

    >>> plain_key("Contains Farm-Animals")
    'contains_farm_animals'
    """
    return re.sub(r"[\W_]+", "_", key.lower()).strip("_")


def _folded(text: str) -> str:
    return " ".join(text.split()).strip("\"'").casefold()
