"""GenEval 2's prompts and the questions about their images (`randcond fetch geneval2`).

In: geneval2_data.jsonl. Out: prompts with their questions, and the texts that count as the correct answer.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from randcond.eval.images.benchmark_prompts import read_prompts

SKILLS = ("object", "attribute", "count", "position", "verb")
NUMERALS = {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
}
_COUNT = "How many"  # how a question begins that is answered by a number
_YES = ("Yes", "yes", " yes", " Yes")


@dataclass(frozen=True)
class Question:
    """A question about an image, and its correct answer: Yes, or a number in words."""

    text: str
    answer: str
    skill: str  # one of SKILLS

    @property
    def answers(self) -> tuple[str, ...]:
        """The texts that count as the correct answer. The probabilities of their first tokens are added up.

        The list is that of GenEval 2's own script, in which a number above ten has the numeral "other".
        """
        if not self.text.startswith(_COUNT):
            return _YES
        numeral = NUMERALS.get(self.answer, "other")
        words = (self.answer, self.answer.capitalize(), numeral)
        return tuple(form for word in words for form in (word, f" {word}"))


@dataclass(frozen=True)
class Item:
    """A prompt of the benchmark."""

    prompt: str
    atoms: int  # how many things it asks for: objects, attributes, numbers, relations
    questions: tuple[Question, ...]


def read_items(path: Path) -> list[Item]:
    """Reads the benchmark's file. Raises UserError naming the line that is wrong, and MissingInput without a file."""
    return read_prompts(path, "eval.geneval2.prompts", "GenEval 2", _item)


def _item(found: dict[str, Any]) -> Item:
    pairs, skills = found["vqa_list"], found["skills"]
    if not pairs or len(pairs) != len(skills):
        raise ValueError(f"it has {len(pairs)} questions and {len(skills)} skills")
    if unknown := set(skills) - set(SKILLS):
        raise ValueError(f"unknown skill {min(unknown)!r}")
    questions = tuple(
        Question(str(text), str(answer), skill) for (text, answer), skill in zip(pairs, skills, strict=True)
    )
    return Item(str(found["prompt"]), int(found["atom_count"]), questions)


def questions_sha256(items: list[Item]) -> str:
    """Returns a hash of all questions and answers (16 hex digits)."""
    facts = [[item.prompt, [[each.text, each.answer] for each in item.questions]] for item in items]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
