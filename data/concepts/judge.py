"""Asks a language model which captions refer to a concept (supplement J)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from randcond.data.concepts.verdicts import Verdict, names, plain_key, read_verdict, read_verdicts
from randcond.data.texts.endpoint import Endpoint
from randcond.data.texts.journal import Journal
from randcond.data.texts.llm import Question, ask
from randcond.data.texts.replies import Answer, Unusable
from randcond.launch.errors import UserError
from randcond.launch.runtime.logs import log

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
    "the {name} name if 'yes', or an empty string if 'no'.{ids}\n\nInput: {sentences}"
)
_IDS = " Repeat the 'id' of the sentence in each dictionary."  # ours, if a question has several sentences
_TOKENS = 32  # approximate number of tokens in the answer for one sentence


class Judge:
    """Asks a language model about several captions per question. Captions without a certain verdict are asked singly.

    In a question about several captions each has an id, which the answer should repeat: models change the order of
    answers and leave some out. A question about one caption has the paper's words alone.
    """

    def __init__(self, endpoint: Endpoint, journal: Path, concept: str, plural: str, per_question: int) -> None:
        """`concept`: a noun (animal). `plural`: its plural (animals). `per_question`: number of captions per question.

        Raises UserError if `per_question` is less than 1.
        """
        if per_question < 1:
            raise UserError(f"--per-question: is {per_question}, expected at least 1")
        self.endpoint, self.journal, self.plural, self.per_question = endpoint, journal, plural, per_question
        self.names = {"name": concept, "one": f"{'an' if concept[0] in 'aeiou' else 'a'} {concept}", "many": plural}
        self.keys = (plain_key(f"contains_{plural}"), plain_key(f"contains_{concept}"))

    def judge(self, captions: Sequence[str], label: str, dry_run: bool = False) -> dict[str, Verdict | None]:
        """Returns caption -> verdict. None: the model gave no usable answer, or `dry_run` and no verdict yet.

        A caption that has a verdict in the journal keeps it, and is not asked about again.
        """
        by_id = {self._id(caption): caption for caption in captions}
        known = self._known(by_id)
        if known.uncertain:
            log.info(
                f"{label}: {len(known.uncertain):,} verdicts in {self.journal} were matched to their captions by the "
                f"order of the answers, which is not certain; these captions are asked again"
            )
        asked = {*known.verdicts, *known.singly}
        together = [caption_id for caption_id in by_id if caption_id not in asked]
        self._ask(by_id, together, self.per_question, label, dry_run)
        known = self._known(by_id)
        alone = [caption_id for caption_id in by_id if caption_id in known.singly and caption_id not in known.verdicts]
        self._ask(by_id, alone, 1, f"{label}, one by one", dry_run)
        verdicts = self._known(by_id).verdicts
        return {caption: verdicts.get(caption_id) for caption_id, caption in by_id.items()}

    def _id(self, caption: str) -> str:
        return hashlib.sha256(f"{self.plural}\0{caption}".encode()).hexdigest()[:16]

    def _known(self, by_id: Mapping[str, str]) -> "_Known":
        """Reads what the journal says about captions. `by_id`: id -> caption."""
        journal = Journal(self.journal, self.endpoint.model, read_only=True)
        known = _Known({}, set(journal.about), set())
        for question_id, answer in journal.answers.items():
            for caption_id, data in _entries(self.journal, question_id, answer):
                if caption_id not in by_id:
                    continue
                verdict = Verdict(*data) if data else None
                if verdict and (verdict.match or self._is_checked(verdict, by_id[caption_id], len(answer) == 1)):
                    known.verdicts[caption_id] = verdict
                elif data is None or len(answer) == 1:
                    known.singly.add(caption_id)
                else:
                    known.uncertain.add(caption_id)
        known.uncertain.difference_update(known.verdicts, known.singly)
        return known

    def _is_checked(self, verdict: Verdict, caption: str, alone: bool) -> bool:
        """Returns True if a verdict of an older version is certain. `alone`: it was asked about this caption alone."""
        return names(verdict.word, caption, self.keys) if verdict.unseen else alone

    def _ask(self, by_id: Mapping[str, str], todo: list[str], size: int, label: str, dry_run: bool) -> None:
        """Asks about the captions with the ids `todo`, `size` captions per question."""
        batches = [todo[start : start + size] for start in range(0, len(todo), size)]
        questions = [self._question([by_id[each] for each in batch], batch) for batch in batches]
        batch_of = {question.id: batch for question, batch in zip(questions, batches, strict=True)}

        def read(question: Question, answer: Answer) -> dict[str, Verdict | None]:
            batch = batch_of[question.id]
            if len(batch) == 1:
                verdicts = {batch[0]: read_verdict(answer.text, self.keys, by_id[batch[0]])}
            else:
                short = _short_ids(batch)
                found = read_verdicts(answer.text, self.keys, {short[each]: by_id[each] for each in batch})
                verdicts = {each: found.get(short[each]) for each in batch}
            if not any(verdicts.values()):
                raise Unusable
            return verdicts

        tokens = _TOKENS * len(todo) / max(1, len(batches))
        hard = size < self.per_question  # these are the captions without a verdict so far
        ask(self.endpoint, questions, self.journal, read, tokens, label, dry_run, hard)

    def _question(self, captions: list[str], ids: list[str]) -> Question:
        if len(captions) == 1:
            sentences = json.dumps(captions, ensure_ascii=False)
            return Question(SYSTEM.format(**self.names), USER.format(**self.names, sentences=sentences, ids=""))
        short = _short_ids(ids)
        entries = [{"id": short[each], "sentence": caption} for each, caption in zip(ids, captions, strict=True)]
        sentences = json.dumps(entries, ensure_ascii=False)
        user = USER.format(**self.names, sentences=sentences, ids=_IDS)
        return Question(SYSTEM.format(**self.names), user, tuple(ids))


def _entries(path: Path, question_id: str, answer: Any) -> list[tuple[str, Any]]:
    """Returns the entries of an answer in the journal: caption id, and the fields of its verdict or None."""
    entries = list(answer.items()) if isinstance(answer, dict) else [("", 0)]
    if any(data is not None and not (isinstance(data, list) and len(data) in (2, 3)) for _, data in entries):
        raise UserError(f"{path}: the answer {question_id} is not a judge's; remove its line, then it is asked again")
    return entries


class _Known(NamedTuple):
    """What a journal says about captions, by their ids."""

    verdicts: dict[str, Verdict]
    singly: set[str]  # asked about without a certain answer, so that the next question is about it alone
    uncertain: set[str]  # an older version matched the verdict by its position


def _short_ids(ids: list[str]) -> dict[str, str]:
    """Returns id -> a short id for a question: not numbers in sequence, which a model may invent.

    >>> _short_ids(["1f3a77", "1f3b00"])
    {'1f3a77': 's1f3a', '1f3b00': 's1f3b'}
    """
    length = 4
    while len({each[:length] for each in ids}) < len(ids):
        length += 1
    return {each: f"s{each[:length]}" for each in ids}
