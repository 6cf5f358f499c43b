"""Asks a language model many questions through an OpenAI-compatible endpoint, each once, and keeps every answer.

In: questions, an endpoint. Out: a journal, one JSON line per answered question, written as the answers come: a killed
run goes on with the questions that have none. Retries and their pauses are the openai client's, limits aiolimiter's.
"""

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.dataclasses import dataclass

from randcond.data.texts.journal import Journal
from randcond.launch.config.parsing import read_settings
from randcond.launch.config.sections import STRICT
from randcond.launch.errors import UserError
from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress

TRIES = 3  # of a question whose answer can't be read
CHARACTERS_PER_TOKEN = 4.0  # of English text, for the estimate


@dataclass(frozen=True, config=STRICT)
class Endpoint:
    """An OpenAI-compatible chat endpoint and how fast it is asked; `model=NAME rpm=500 ...` on the command line."""

    model: str
    url: str | None = None  # its base URL, e.g. http://localhost:8000/v1; null: OPENAI_BASE_URL, or OpenAI's own
    key: str = "OPENAI_API_KEY"  # the environment variable that holds its key
    concurrency: int = 16  # questions under way at once
    rpm: int = 0  # requests a minute; 0: as many as it takes
    tpm: int = 0  # tokens a minute, questions and answers; 0: as many as it takes
    retries: int = 10  # of a question that is refused for now or cut, with growing pauses
    timeout: float = 120.0  # seconds for one answer
    temperature: float | None = None  # null: the model's own
    max_tokens: int | None = None  # of one answer; null: the model's own
    price_in: float = 0.0  # US dollars for a million tokens of questions
    price_out: float = 0.0  # and of answers
    max_cost: float = 0.0  # US dollars of the estimate above which nothing is asked; 0: any

    def __post_init__(self) -> None:
        # ValueError, which pydantic collects: `parse` makes a UserError of it that names the key.
        for name, least in (("concurrency", 1), ("rpm", 0), ("tpm", 0), ("retries", 0), ("price_in", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.max_cost and not (self.price_in or self.price_out):
            raise ValueError("max_cost: needs price_in and price_out")


def read_endpoint(words: Iterable[str]) -> Endpoint:
    """The endpoint that `key=value` words describe; raises UserError naming a wrong key."""
    return read_settings(Endpoint, list(words))


class Unusable(Exception):
    """An answer that is not what was asked for; kept in the journal, and asked again when its line is removed."""


class Answer(NamedTuple):
    """What a model said."""

    text: str
    cut: bool = False  # it came to the limit of its length


class Question(NamedTuple):
    """What is asked; it is the same question when its text is the same."""

    system: str
    user: str

    @property
    def id(self) -> str:
        """Names it in the journal."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()[:24]


def estimate(endpoint: Endpoint, questions: list[Question], answer_tokens: float) -> str:
    """What asking would take, in a line; raises UserError when it is above `max_cost`."""
    tokens = sum(len(q.system) + len(q.user) for q in questions) / CHARACTERS_PER_TOKEN
    out = len(questions) * answer_tokens
    cost = _cost(endpoint, tokens, out)
    line = (
        f"{len(questions):,} questions for {endpoint.model}, about {tokens / 1e6:.2f}M tokens in, {out / 1e6:.2f}M out"
    )
    if endpoint.price_in or endpoint.price_out:
        line += f", ${cost:,.2f}"
    if endpoint.rpm or endpoint.tpm:
        minutes = max(
            len(questions) / endpoint.rpm if endpoint.rpm else 0, (tokens + out) / endpoint.tpm if endpoint.tpm else 0
        )
        line += f", at least {minutes:,.0f} min at this rate"
    if endpoint.max_cost and cost > endpoint.max_cost:
        raise UserError(f"max_cost: {line}: above ${endpoint.max_cost:g}, nothing was asked")
    return line


def _cost(endpoint: Endpoint, tokens_in: float, tokens_out: float) -> float:
    return (tokens_in * endpoint.price_in + tokens_out * endpoint.price_out) / 1e6


def ask(
    endpoint: Endpoint,
    questions: Iterable[Question],
    journal: Path,
    read: Callable[[Question, Answer], Any],
    answer_tokens: float,
    label: str,
    dry_run: bool = False,
) -> Journal:
    """Asks what the journal has no answer to; returns it, closed, with every question answered or given up.

    `read` turns a question's answer into what is kept, or raises Unusable: it is asked again, TRIES times in all.
    `answer_tokens`: of one answer, for the estimate that is printed first; `dry_run`: it alone.
    Ctrl-C and SIGTERM wait for the answers under way, so that nothing is asked twice, and raise KeyboardInterrupt; a
    second one does not wait. Raises UserError when the endpoint refuses key, model or question, ConnectionError when
    it doesn't answer.
    """
    with locked(journal.parent):
        kept = Journal(journal, endpoint.model)
        try:
            wanted = {question.id: question for question in questions}
            left = [question for question in wanted.values() if question.id not in kept]
            if left:
                log.info(
                    f"{label}: {len(wanted) - len(left):,} answered before; {estimate(endpoint, left, answer_tokens)}"
                )
            if left and not dry_run:
                key = _key(endpoint)
                with Progress(total=len(wanted), initial=len(wanted) - len(left), desc=label, unit="question") as bar:
                    asyncio.run(_Asker(endpoint, key, kept, read, bar).ask(left))
                if any(question.id not in kept for question in left):
                    raise KeyboardInterrupt
                spent = f", ${_cost(endpoint, *kept.tokens):,.2f}" if endpoint.price_in or endpoint.price_out else ""
                log.info(f"{label}: {kept.tokens[0]:,} tokens in, {kept.tokens[1]:,} out{spent}")
        finally:
            kept.close()
    return kept


def _key(endpoint: Endpoint) -> str:
    key = os.environ.get(endpoint.key)
    if key is None and endpoint.url is None and "OPENAI_BASE_URL" not in os.environ:
        raise UserError(f"no key: set the environment variable {endpoint.key}, or give url=... of an own endpoint")
    return key or "none"  # an own endpoint may want none


class _Asker:
    """The questions under way."""

    def __init__(
        self, endpoint: Endpoint, key: str, journal: Journal, read: Callable[[Question, Answer], Any], bar: Progress
    ) -> None:
        import openai
        from aiolimiter import AsyncLimiter

        self.endpoint, self.journal, self.read, self.bar = endpoint, journal, read, bar
        self.client = openai.AsyncOpenAI(
            api_key=key, base_url=endpoint.url, max_retries=endpoint.retries, timeout=endpoint.timeout
        )
        self.requests = AsyncLimiter(max(1.0, endpoint.rpm / 60), 1.0) if endpoint.rpm >= 60 else None
        if 0 < endpoint.rpm < 60:
            self.requests = AsyncLimiter(1, 60 / endpoint.rpm)
        self.tokens = AsyncLimiter(endpoint.tpm, 60.0) if endpoint.tpm else None
        self.stopping = asyncio.Event()

    async def ask(self, questions: list[Question]) -> None:
        rest = iter(questions)
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sign, self._stop, sign)
        async with self.client:
            workers = [asyncio.create_task(self._work(rest)) for _ in range(self.endpoint.concurrency)]
            _, waiting = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            self.stopping.set()  # the others still take the answers under way
            if waiting:
                await asyncio.wait(waiting)
        if errors := [error for worker in workers if (error := worker.exception()) is not None]:
            raise errors[0]

    def _stop(self, sign: int) -> None:
        if self.stopping.is_set():
            raise KeyboardInterrupt
        self.bar.write("stopping after the answers under way; the same command goes on (again: at once)")
        self.stopping.set()

    async def _work(self, rest: Iterable[Question]) -> None:
        for question in rest:
            await self._answer(question)
            self.bar.update()
            if self.stopping.is_set():
                return

    async def _answer(self, question: Question) -> None:
        tokens = (0, 0)
        for attempt in range(TRIES):
            answer, spent = await self._complete(question, self.endpoint.retries)
            tokens = (tokens[0] + spent[0], tokens[1] + spent[1])
            over = True
            try:
                self.journal.add(question.id, self.read(question, answer), tokens)
            except Unusable:
                over = attempt == TRIES - 1
                if over:
                    self.journal.give_up(question.id, answer.text, tokens)
            await self._pay(spent[1])  # after it is kept: waiting for the rate must lose nothing
            if over or self.stopping.is_set():
                return

    async def _pay(self, tokens: float) -> None:
        if self.tokens and not self.stopping.is_set():
            await self.tokens.acquire(min(tokens, self.endpoint.tpm))

    async def _complete(self, question: Question, retries: int) -> tuple[Answer, tuple[int, int]]:
        """An answer, and the tokens of both."""
        import openai

        if self.requests:
            await self.requests.acquire()
        await self._pay((len(question.system) + len(question.user)) / CHARACTERS_PER_TOKEN)
        settings: dict[str, Any] = {"temperature": self.endpoint.temperature, "max_tokens": self.endpoint.max_tokens}
        try:
            answer = await self.client.chat.completions.create(
                model=self.endpoint.model,
                messages=[
                    {"role": "system", "content": question.system},
                    {"role": "user", "content": question.user},
                ],
                **{name: value for name, value in settings.items() if value is not None},
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(f"{self._where()} refuses: {error}; check model, url and ${self.endpoint.key}") from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise UserError(f"{self._where()} can't take the question {question.user[:80]!r}: {error}") from None
        except openai.OpenAIError as error:
            raise ConnectionError(
                f"{self._where()}: no answer after {self.endpoint.retries} retries ({error}); "
                f"what was answered is kept, the same command goes on"
            ) from None
        if not getattr(answer, "choices", None):  # gateways put an error, or a page, into a reply that says all is well
            if retries and not self.stopping.is_set():
                await asyncio.sleep(min(8.0, 2.0 ** (self.endpoint.retries - retries) / 2))
                return await self._complete(question, retries - 1)
            raise ConnectionError(
                f"{self._where()}: its reply is no chat completion: {str(answer)[:200]!r}; is the url right (.../v1)? "
                f"What was answered is kept, the same command goes on"
            )
        spent = (answer.usage.prompt_tokens, answer.usage.completion_tokens) if answer.usage else (0, 0)
        choice = answer.choices[0]
        text = (choice.message.content or "").encode(errors="replace").decode()  # half a surrogate can't be kept
        return Answer(text, choice.finish_reason == "length"), spent

    def _where(self) -> str:
        return f"the endpoint {self.client.base_url}"
