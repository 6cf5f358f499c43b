"""Which captions have to do with a concept, in a language model's opinion (supplement J)."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from randcond.data.llm import Endpoint, Question, Unusable, ask

# Supplement J, word by word but for the concept's name.
SYSTEM = (
    "You are an assistant that identifies if each sentence in the provided JSON contains references to {many}. "
    "Do not consider plants, objects, places, or any word that could be confused for {one}. "
    "If you find a reference to {one}, provide the exact word that led you to identify it."
)
USER = (
    "Read each of the following sentences and determine if it contains a reference to {one}. The sentences are given "
    "in JSON format. Provide an answer with 'yes' or 'no' for each sentence. If the answer is 'yes', provide the "
    "specific {name} name that led you to this conclusion. Provide the answers in JSON format as a list of "
    "dictionaries, where each dictionary contains 'contains_{many}' with either 'yes' or 'no', and 'reason', which is "
    "the {name} name if 'yes', or an empty string if 'no'.\n\nInput: {sentences}"
)
_TOKENS = 22  # of one sentence's answer, about


class Verdict(NamedTuple):
    """A model's opinion of one caption."""

    unseen: bool
    word: str  # what led to it


class Judge:
    """Asks a model about captions, some at once; those it gives no readable answer to, one by one."""

    def __init__(self, endpoint: Endpoint, journal: Path, concept: str, many: str, per_question: int) -> None:
        """`concept`: one (animal), `many`: several of it (animals); `per_question`: captions asked about at once."""
        self.endpoint, self.journal, self.many, self.per_question = endpoint, journal, many, per_question
        self.names = {"name": concept, "one": f"{'an' if concept[0] in 'aeiou' else 'a'} {concept}", "many": many}

    def judge(self, captions: Sequence[str], label: str, dry_run: bool = False) -> dict[str, Verdict | None]:
        """Caption -> verdict, None where the model gave no readable one (with `dry_run`: where it was not asked)."""
        batches = [captions[start : start + self.per_question] for start in range(0, len(captions), self.per_question)]
        verdicts = self._ask(batches, label, dry_run)
        unclear = [[caption] for caption in captions if verdicts[caption] is None]
        if unclear and self.per_question > 1 and not dry_run:
            verdicts |= self._ask(unclear, f"{label}, one by one", dry_run)
        return verdicts

    def _ask(self, batches: Sequence[Sequence[str]], label: str, dry_run: bool) -> dict[str, Verdict | None]:
        asked = [(batch, self._question(batch)) for batch in batches]
        counts = {question.id: len(batch) for batch, question in asked}
        tokens = _TOKENS * sum(map(len, batches)) / max(1, len(batches))
        questions = [question for _, question in asked]
        kept = ask(self.endpoint, questions, self.journal, self._reader(counts), tokens, label, dry_run)
        verdicts: dict[str, Verdict | None] = {}
        for batch, question in asked:
            answers = kept.answers.get(question.id) or [None] * len(batch)
            verdicts.update(
                (caption, Verdict(*answer) if answer else None) for caption, answer in zip(batch, answers, strict=True)
            )
        return verdicts

    def _question(self, batch: Sequence[str]) -> Question:
        sentences = json.dumps(list(batch), ensure_ascii=False)
        return Question(SYSTEM.format(**self.names), USER.format(**self.names, sentences=sentences))

    def _reader(self, counts: dict[str, int]) -> Callable[[Question, str], list[tuple[bool, str]]]:
        def read(question: Question, answer: str) -> list[tuple[bool, str]]:
            return read_verdicts(answer, f"contains_{self.many}", counts[question.id])

        return read


def read_verdicts(answer: str, key: str, count: int) -> list[tuple[bool, str]]:
    """(unseen, word) for each sentence; raises Unusable when an answer is no JSON list of that many yes or no."""
    found = re.search(r"\[.*\]", answer, re.DOTALL)  # models like to put a fence or a sentence around it
    try:
        entries: list[dict[str, Any]] = json.loads(found[0]) if found else []
        verdicts = [({"yes": True, "no": False}[entry[key].lower()], str(entry.get("reason", ""))) for entry in entries]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Unusable from None
    if len(verdicts) != count:
        raise Unusable
    return verdicts
