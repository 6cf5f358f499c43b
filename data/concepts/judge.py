"""Which captions have to do with a concept, in a language model's opinion (supplement J)."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from randcond.data.texts.journal import Journal
from randcond.data.texts.llm import Answer, Endpoint, Question, Unusable, ask
from randcond.launch.errors import UserError

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
        if per_question < 1:
            raise UserError(f"--per-question: at least 1, got {per_question}")
        self.endpoint, self.journal, self.many, self.per_question = endpoint, journal, many, per_question
        self.names = {"name": concept, "one": f"{'an' if concept[0] in 'aeiou' else 'a'} {concept}", "many": many}

    def judge(self, captions: Sequence[str], label: str, dry_run: bool = False) -> dict[str, Verdict | None]:
        """Caption -> verdict, None where the model gave no readable one (with `dry_run`: where it was not asked).

        A caption that was ever judged keeps its verdict, whichever captions it stood beside.
        """
        for size in (self.per_question, 1):
            known, unusable = self._verdicts()
            left = [caption for caption in captions if self._id(caption) not in known]
            left = [caption for caption in left if self._question([caption]).id not in unusable]
            batches = [left[start : start + size] for start in range(0, len(left), size)]
            self._ask(batches, label if size > 1 else f"{label}, one by one", dry_run)
            if dry_run:
                break
        known, _ = self._verdicts()
        return {caption: known.get(self._id(caption)) for caption in captions}

    def _id(self, caption: str) -> str:
        return hashlib.sha256(f"{self.many}\0{caption}".encode()).hexdigest()[:16]

    def _verdicts(self) -> tuple[dict[str, Verdict], set[str]]:
        """All that the journal holds, by caption; and the questions without a readable answer."""
        kept = Journal(self.journal, self.endpoint.model, read_only=True)
        said = ((caption, Verdict(*said)) for answer in kept.answers.values() for caption, said in answer.items())
        return dict(said), kept.unusable

    def _ask(self, batches: list[list[str]], label: str, dry_run: bool) -> None:
        asked = {(question := self._question(batch)).id: (question, batch) for batch in batches}

        def read(question: Question, answer: Answer) -> dict[str, tuple[bool, str]]:
            batch = asked[question.id][1]
            verdicts = read_verdicts(answer.text, f"contains_{self.many}", len(batch))
            return dict(zip(map(self._id, batch), verdicts, strict=True))

        tokens = _TOKENS * sum(map(len, batches)) / max(1, len(batches))
        questions = [question for question, _ in asked.values()]
        ask(self.endpoint, questions, self.journal, read, tokens, label, dry_run)

    def _question(self, batch: Sequence[str]) -> Question:
        sentences = json.dumps(list(batch), ensure_ascii=False)
        return Question(SYSTEM.format(**self.names), USER.format(**self.names, sentences=sentences))


def read_verdicts(answer: str, key: str, count: int) -> list[tuple[bool, str]]:
    """(unseen, word) for each sentence; raises Unusable when an answer is no JSON list of that many yes or no."""
    found = re.search(r"\[.*\]", answer, re.DOTALL)  # models like to put a fence or a sentence around it
    try:
        entries: list[dict[str, Any]] = json.loads(found[0]) if found else []
        verdicts = [({"yes": True, "no": False}[entry[key].lower()], str(entry.get("reason", ""))) for entry in entries]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise Unusable from None
    if len(verdicts) != count:
        raise Unusable
    return verdicts
