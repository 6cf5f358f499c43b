"""Asks a language model many questions through an OpenAI-compatible endpoint and keeps every answer.

In: questions, an endpoint. Out: a journal with one JSON line per question: its answer, or why there is none. A killed
run resumes with the questions that have no line yet.
"""

import asyncio
import shlex
import signal
from collections import deque
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from randcond.data.texts.endpoint import Endpoint, cost, estimate
from randcond.data.texts.journal import Journal
from randcond.data.texts.replies import Answer, Refused, Reply, Trouble, Unusable
from randcond.data.texts.sender import Sender
from randcond.launch.errors import UserError
from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress

TRIES = 3  # how often a question is asked until its answer is usable
FIRST = 100  # the outcomes that decide whether a run goes on, see `max_unusable`
CONTROL = ("You are a helpful assistant.", "Answer 'yes'.")  # tells whether an endpoint replies at all
LONGEST_KEPT = 5_000  # characters of an unusable answer that the journal keeps
Read = Callable[["Question", Answer], Any]


class Question(NamedTuple):
    """A question to the language model. Questions with equal text are the same question."""

    system: str
    user: str
    about: tuple[str, ...] = ()  # ids of what it is about; the journal keeps them if there is no usable answer

    @property
    def id(self) -> str:
        """The id of the question in the journal: a hash of its text."""
        return sha256(f"{self.system}\0{self.user}".encode()).hexdigest()[:24]


def ask(
    endpoint: Endpoint,
    questions: Iterable[Question],
    journal: Path,
    read: Read,
    answer_tokens: float,
    label: str,
    dry_run: bool = False,
    hard: bool = False,
) -> Journal:
    """Sends the questions that have no outcome in the journal yet. Returns the journal, closed.

    A question has one of three outcomes. Answered: `read` could parse the answer. Unusable: `read` raised Unusable
    TRIES times, or only this question never got a reply. Refused: the endpoint or its model refuses this question.

    `read`: parses an answer to the value that the journal keeps. If it raises Unusable, the question is asked again.
    `answer_tokens`: expected tokens per answer, for the estimate that is logged first. `label`: name in log lines.
    `dry_run`: only log the estimate. `hard`: many of the questions are expected to get no usable answer.

    On Ctrl-C or SIGTERM, waits for the open requests, so that no question is asked twice, and raises KeyboardInterrupt.
    A second signal does not wait. Raises UserError if the endpoint would refuse every question (key, model, settings),
    or if most of the first 100 outcomes (`max_unusable`) are no answers and the questions are not `hard`. Raises
    ConnectionError if the endpoint does not answer.
    """
    with locked(journal.parent):
        answers = Journal(journal, endpoint.model)
        try:
            by_id = {question.id: question for question in questions}
            todo = [question for question in by_id.values() if question.id not in answers]
            known = len(by_id) - len(todo)
            if todo:
                characters = sum(len(question.system) + len(question.user) for question in todo)
                log.info(
                    f"{label}: {known:,} already known; {estimate(endpoint, characters, len(todo), answer_tokens)}"
                )
            if todo and not dry_run:
                key = endpoint.api_key()
                with Progress(total=len(by_id), initial=known, desc=label, unit="question") as bar:
                    asker = _Asker(endpoint, answers, read, bar, 1.0 if hard else endpoint.max_unusable)
                    asyncio.run(asker.ask(todo, key))
                if any(question.id not in answers for question in todo):
                    raise KeyboardInterrupt
                log.info(f"{label}: {_totals(endpoint, answers, todo, known)}")
                if asker.bad:
                    log.info(f"{label}: no usable answer, for example: {'; '.join(asker.bad[:3])}; see {journal}")
        finally:
            answers.close()
    return answers


def _totals(endpoint: Endpoint, answers: Journal, asked: list[Question], known: int) -> str:
    """Returns how many questions had which outcome, and the tokens of the whole journal."""
    counts = {
        "answered": sum(question.id in answers.answers for question in asked),
        "unusable": sum(question.id in answers.unusable for question in asked),
        "refused": sum(question.id in answers.refused for question in asked),
        "already known": known,
    }
    price = f", ${cost(endpoint, *answers.tokens):,.2f}" if endpoint.price_in or endpoint.price_out else ""
    return (
        f"{len(asked) + known:,} questions: {', '.join(f'{count:,} {kind}' for kind, count in counts.items())}; "
        f"{answers.tokens[0]:,} tokens in, {answers.tokens[1]:,} out{price}"
    )


class _Asker:
    """Asks questions concurrently and writes their outcomes to a journal."""

    def __init__(self, endpoint: Endpoint, journal: Journal, read: Read, bar: Progress, max_unusable: float) -> None:
        self.endpoint, self.journal, self.read, self.bar = endpoint, journal, read, bar
        self.stopping = asyncio.Event()
        self.queue: deque[Question] = deque()
        self.max_bad = max_unusable * FIRST
        self.outcomes = 0
        self.bad: list[str] = []  # the outcomes that are no answers, for messages
        self.sender: Sender

    async def ask(self, questions: list[Question], key: str) -> None:
        """Asks the questions. Returns when all have an outcome, or when the open requests have ended after a signal."""
        self.queue.extend(questions)
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, self._stop)
        async with Sender(self.endpoint, key, self.stopping) as self.sender:
            workers = [asyncio.create_task(self._work()) for _ in range(self.endpoint.concurrency)]
            _, pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            self.stopping.set()  # after an error, the other workers only finish their open requests
            if pending:
                await asyncio.wait(pending)
        if errors := [error for worker in workers if (error := worker.exception()) is not None]:
            raise errors[0]

    def _stop(self) -> None:
        if self.stopping.is_set():
            raise KeyboardInterrupt
        self.bar.write("stopping after the open requests; run the same command to resume (Ctrl-C again stops now)")
        self.stopping.set()

    async def _work(self) -> None:
        while self.queue and not self.stopping.is_set():
            await self._answer(self.queue.popleft())

    async def _answer(self, question: Question) -> None:
        """Asks a question until it has an outcome, or until the run should stop."""
        tokens = (0, 0)
        for attempt in range(TRIES):
            try:
                reply = await self._reply(question)
            except Refused as refusal:
                tokens = (tokens[0] + refusal.tokens[0], tokens[1] + refusal.tokens[1])
                return self._end(question, "refused", self.sender.shown(refusal), tokens)
            except Trouble as trouble:
                return self._end(question, "unusable", f"no reply: {self.sender.shown(trouble)}", tokens)
            if reply is None:
                return None
            answer, used = reply
            tokens = (tokens[0] + used[0], tokens[1] + used[1])
            done = True
            try:
                self._end(question, "answer", self.read(question, answer), tokens)
            except Unusable:
                if done := attempt == TRIES - 1:
                    text = (answer.raw or answer.text)[:LONGEST_KEPT]
                    self._end(question, "unusable", text, tokens, " (cut off)" * answer.cut)
            await self.sender.wait_for_tokens(used[1])  # after the answer is in the journal: a kill does not lose it
            if done or self.stopping.is_set():
                return None
        return None

    def _end(self, question: Question, kind: str, value: Any, tokens: tuple[int, int], note: str = "") -> None:
        """Writes an outcome to the journal. Raises UserError if too many of the first ones are no answers."""
        if kind == "answer":
            self.journal.add(question.id, value, tokens)
        else:
            self.journal.give_up(question.id, value, tokens, kind, question.about)
        self.bar.update()
        self.outcomes += 1
        if kind == "answer":
            return
        asked, said = (" ".join(text.split()) for text in (question.user, value))
        self.bad.append(f"{asked[-60:]!r} is {kind}{note}: {said[:120]!r}")
        if self.outcomes <= FIRST and len(self.bad) > self.max_bad:
            raise UserError(
                f"{self.journal.path}: {len(self.bad)} of the first {self.outcomes} questions have no usable answer; "
                f"{'; '.join(self.bad[:3])}; try another model, or a larger max_tokens if answers are cut off; "
                f"max_unusable=1 goes on in any case; to ask these questions again, remove their lines: "
                f"sed -i '/, \"\\(unusable\\|refused\\)\": /d' {shlex.quote(str(self.journal.path))}"
            )

    async def _reply(self, question: Question) -> Reply | None:
        """Sends a question. Returns None if the run should stop and there is no reply.

        If there is no reply in spite of all retries, another question tells whether the endpoint replies at all. Raises
        ConnectionError if it does not, and Trouble if only this question gets no reply. Raises Refused.
        """
        try:
            return await self.sender.send(question.system, question.user, self.endpoint.retries)
        except Trouble as error:
            trouble = error
        try:
            if await self.sender.send(*CONTROL, retries=0) is None:
                return None
        except Refused:
            pass
        except Trouble:
            raise ConnectionError(
                f"{self.endpoint.name()}: no answer after {self.endpoint.retries} retries "
                f"({self.sender.shown(trouble)}); all answers so far are kept, run the same command to resume"
            ) from None
        return await self.sender.send(question.system, question.user, retries=0)
