"""Asks a language model which captions refer to a concept (supplement J)."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from randcond.data.texts.journal import Journal
from randcond.data.texts.llm import Answer, Endpoint, Question, Unusable, ask
from randcond.launch.errors import UserError

# The prompts of supplement J, word for word except for the name of the concept.
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
_TOKENS = 22  # approximate number of tokens in the answer for one sentence


class Verdict(NamedTuple):
    """The language model's verdict on one caption."""

    unseen: bool
    word: str  # the word in the caption that led to the verdict


class Judge:
    """Asks a language model about several captions per question. Captions without a usable answer are asked singly."""

    def __init__(self, endpoint: Endpoint, journal: Path, concept: str, plural: str, per_question: int) -> None:
        """`concept`: a noun (animal). `plural`: its plural (animals). `per_question`: number of captions per question.

        Raises UserError if `per_question` is less than 1.
        """
        if per_question < 1:
            raise UserError(f"--per-question: is {per_question}, expected at least 1")
        self.endpoint, self.journal, self.plural, self.per_question = endpoint, journal, plural, per_question
        self.names = {"name": concept, "one": f"{'an' if concept[0] in 'aeiou' else 'a'} {concept}", "many": plural}

    def judge(self, captions: Sequence[str], label: str, dry_run: bool = False) -> dict[str, Verdict | None]:
        """Returns caption -> verdict. None: the model gave no usable answer, or `dry_run` and no verdict yet.

        A caption that has a verdict in the journal keeps it, and is not asked about again.
        """
        for size in (self.per_question, 1):
            known, unusable = self._verdicts()
            todo = [caption for caption in captions if self._id(caption) not in known]
            todo = [caption for caption in todo if self._question([caption]).id not in unusable]
            batches = [todo[start : start + size] for start in range(0, len(todo), size)]
            self._ask(batches, label if size > 1 else f"{label}, one by one", dry_run)
            if dry_run:
                break
        known, _ = self._verdicts()
        return {caption: known.get(self._id(caption)) for caption in captions}

    def _id(self, caption: str) -> str:
        return hashlib.sha256(f"{self.plural}\0{caption}".encode()).hexdigest()[:16]

    def _verdicts(self) -> tuple[dict[str, Verdict], set[str]]:
        """Reads the journal. Returns caption id -> verdict, and the ids of questions without a usable answer."""
        journal = Journal(self.journal, self.endpoint.model, read_only=True)
        verdicts = {
            caption_id: Verdict(*verdict)
            for answer in journal.answers.values()
            for caption_id, verdict in answer.items()
        }
        return verdicts, journal.unusable

    def _ask(self, batches: list[list[str]], label: str, dry_run: bool) -> None:
        batch_of = {(question := self._question(batch)).id: (question, batch) for batch in batches}

        def read(question: Question, answer: Answer) -> dict[str, tuple[bool, str]]:
            batch = batch_of[question.id][1]
            verdicts = read_verdicts(answer.text, f"contains_{self.plural}", len(batch))
            return dict(zip(map(self._id, batch), verdicts, strict=True))

        tokens = _TOKENS * sum(map(len, batches)) / max(1, len(batches))
        questions = [question for question, _ in batch_of.values()]
        ask(self.endpoint, questions, self.journal, read, tokens, label, dry_run)

    def _question(self, batch: Sequence[str]) -> Question:
        sentences = json.dumps(list(batch), ensure_ascii=False)
        return Question(SYSTEM.format(**self.names), USER.format(**self.names, sentences=sentences))


def read_verdicts(answer: str, key: str, count: int) -> list[tuple[bool, str]]:
    """Parses an answer to (unseen, word) for each sentence. `key`: the JSON key with yes or no.

    Raises Unusable if the answer is not a JSON list with `count` entries of yes or no.
    """
    json_list = re.search(r"\[.*\]", answer, re.DOTALL)  # models often put a code fence or a sentence around it
    try:
        entries: list[dict[str, Any]] = json.loads(json_list[0]) if json_list else []
        verdicts = [({"yes": True, "no": False}[entry[key].lower()], str(entry.get("reason", ""))) for entry in entries]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise Unusable from None
    if len(verdicts) != count:
        raise Unusable
    return verdicts
