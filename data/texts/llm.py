"""Sends many questions to a language model through an OpenAI-compatible endpoint and keeps every answer.

In: questions, an endpoint. Out: a journal with one JSON line per answered question. A killed run resumes with the
questions that have no answer yet. The openai client does the retries, aiolimiter the rate limits.
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

TRIES = 3  # how often a question is asked until its answer is usable
CHARACTERS_PER_TOKEN = 4.0  # approximation for English text, used in cost estimates


@dataclass(frozen=True, config=STRICT)
class Endpoint:
    """An OpenAI-compatible chat endpoint with its limits and prices. On the command line: `model=NAME rpm=500 ...`."""

    model: str
    url: str | None = None  # base URL, e.g. http://localhost:8000/v1; null: $OPENAI_BASE_URL, or OpenAI's
    key: str = "OPENAI_API_KEY"  # name of the environment variable with the API key
    concurrency: int = 16  # maximum number of open requests
    rpm: int = 0  # maximum requests per minute; 0: no limit
    tpm: int = 0  # maximum tokens per minute, questions and answers; 0: no limit
    retries: int = 10  # retries of a failed request, with growing pauses
    timeout: float = 120.0  # seconds per request
    temperature: float | None = None  # null: the model's default
    max_tokens: int | None = None  # maximum tokens of one answer; null: the model's default
    price_in: float = 0.0  # US dollars per million tokens of questions
    price_out: float = 0.0  # US dollars per million tokens of answers
    max_cost: float = 0.0  # US dollars; a higher estimate stops the command before any question; 0: no limit

    def __post_init__(self) -> None:
        # pydantic collects a ValueError, and read_settings() makes a UserError with the key from it.
        for name, minimum in (("concurrency", 1), ("rpm", 0), ("tpm", 0), ("retries", 0), ("price_in", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}: is {getattr(self, name)}, expected at least {minimum}")
        if self.max_cost and not (self.price_in or self.price_out):
            raise ValueError("max_cost: needs price_in and price_out")


def read_endpoint(words: Iterable[str]) -> Endpoint:
    """Parses `key=value` arguments to an endpoint. Raises UserError if a key or value is wrong."""
    return read_settings(Endpoint, list(words))


class Unusable(Exception):
    """Raised if an answer can't be parsed. To ask the question again, remove its line from the journal."""


class Answer(NamedTuple):
    """An answer of the language model."""

    text: str
    cut: bool = False  # True if the answer reached the length limit


class Question(NamedTuple):
    """A question to the language model. Questions with equal text are the same question."""

    system: str
    user: str

    @property
    def id(self) -> str:
        """The id of the question in the journal: a hash of its text."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()[:24]


def estimate(endpoint: Endpoint, questions: list[Question], answer_tokens: float) -> str:
    """Returns one line with the tokens, cost and time that the questions need.

    `answer_tokens`: tokens per answer. Raises UserError if the cost is above `max_cost`.
    """
    tokens_in = sum(len(question.system) + len(question.user) for question in questions) / CHARACTERS_PER_TOKEN
    tokens_out = len(questions) * answer_tokens
    cost = _cost(endpoint, tokens_in, tokens_out)
    line = (
        f"{len(questions):,} questions for {endpoint.model}, "
        f"about {tokens_in / 1e6:.2f}M tokens in, {tokens_out / 1e6:.2f}M out"
    )
    if endpoint.price_in or endpoint.price_out:
        line += f", ${cost:,.2f}"
    if endpoint.rpm or endpoint.tpm:
        minutes = max(
            len(questions) / endpoint.rpm if endpoint.rpm else 0,
            (tokens_in + tokens_out) / endpoint.tpm if endpoint.tpm else 0,
        )
        line += f", at least {minutes:,.0f} min at this rate"
    if endpoint.max_cost and cost > endpoint.max_cost:
        raise UserError(f"max_cost: the estimate is above ${endpoint.max_cost:g}, no question was sent: {line}")
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
    """Sends the questions that the journal has no answer to. Returns the journal, closed.

    `read`: parses an answer to the value that the journal keeps. If it raises Unusable, the question is asked again, up
    to TRIES times in total, and then recorded as unusable.
    `answer_tokens`: expected tokens per answer, for the estimate that is logged first. `label`: name in log lines.
    `dry_run`: only log the estimate.

    On Ctrl-C or SIGTERM, waits for the open requests, so that no question is asked twice, and raises KeyboardInterrupt.
    A second signal does not wait. Raises UserError if the endpoint refuses the key, the model or a question, and
    ConnectionError if it does not answer.
    """
    with locked(journal.parent):
        answers = Journal(journal, endpoint.model)
        try:
            by_id = {question.id: question for question in questions}
            todo = [question for question in by_id.values() if question.id not in answers]
            if todo:
                log.info(
                    f"{label}: {len(by_id) - len(todo):,} already answered; {estimate(endpoint, todo, answer_tokens)}"
                )
            if todo and not dry_run:
                key = _key(endpoint)
                with Progress(total=len(by_id), initial=len(by_id) - len(todo), desc=label, unit="question") as bar:
                    asyncio.run(_Asker(endpoint, key, answers, read, bar).ask(todo))
                if any(question.id not in answers for question in todo):
                    raise KeyboardInterrupt
                cost = f", ${_cost(endpoint, *answers.tokens):,.2f}" if endpoint.price_in or endpoint.price_out else ""
                log.info(f"{label}: {answers.tokens[0]:,} tokens in, {answers.tokens[1]:,} out{cost}")
        finally:
            answers.close()
    return answers


def _key(endpoint: Endpoint) -> str:
    key = os.environ.get(endpoint.key)
    if key is None and endpoint.url is None and "OPENAI_BASE_URL" not in os.environ:
        raise UserError(f"no API key: set the environment variable {endpoint.key}, or give url=... of another endpoint")
    return key or "none"  # other endpoints may need no key, but the client does


class _Asker:
    """Sends questions concurrently, within the rate limits."""

    def __init__(
        self, endpoint: Endpoint, key: str, journal: Journal, read: Callable[[Question, Answer], Any], bar: Progress
    ) -> None:
        import openai
        from aiolimiter import AsyncLimiter

        self.endpoint, self.journal, self.read, self.bar = endpoint, journal, read, bar
        self.client = openai.AsyncOpenAI(
            api_key=key, base_url=endpoint.url, max_retries=endpoint.retries, timeout=endpoint.timeout
        )
        self.request_limit = AsyncLimiter(max(1.0, endpoint.rpm / 60), 1.0) if endpoint.rpm >= 60 else None
        if 0 < endpoint.rpm < 60:
            self.request_limit = AsyncLimiter(1, 60 / endpoint.rpm)
        self.token_limit = AsyncLimiter(endpoint.tpm, 60.0) if endpoint.tpm else None
        self.stopping = asyncio.Event()

    async def ask(self, questions: list[Question]) -> None:
        queue = iter(questions)
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, self._stop)
        async with self.client:
            workers = [asyncio.create_task(self._work(queue)) for _ in range(self.endpoint.concurrency)]
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

    async def _work(self, queue: Iterable[Question]) -> None:
        for question in queue:
            await self._answer(question)
            self.bar.update()
            if self.stopping.is_set():
                return

    async def _answer(self, question: Question) -> None:
        tokens = (0, 0)
        for attempt in range(TRIES):
            answer, used = await self._complete(question, self.endpoint.retries)
            tokens = (tokens[0] + used[0], tokens[1] + used[1])
            done = True
            try:
                self.journal.add(question.id, self.read(question, answer), tokens)
            except Unusable:
                done = attempt == TRIES - 1
                if done:
                    self.journal.give_up(question.id, answer.text, tokens)
            await self._wait_for_tokens(used[1])  # only after the answer is in the journal, or a kill could lose it
            if done or self.stopping.is_set():
                return

    async def _wait_for_tokens(self, tokens: float) -> None:
        if self.token_limit and not self.stopping.is_set():
            await self.token_limit.acquire(min(tokens, self.endpoint.tpm))

    async def _complete(self, question: Question, retries: int) -> tuple[Answer, tuple[int, int]]:
        """Sends one question. Returns the answer, and the number of tokens (in, out)."""
        import openai

        if self.request_limit:
            await self.request_limit.acquire()
        await self._wait_for_tokens((len(question.system) + len(question.user)) / CHARACTERS_PER_TOKEN)
        settings: dict[str, Any] = {"temperature": self.endpoint.temperature, "max_tokens": self.endpoint.max_tokens}
        try:
            completion = await self.client.chat.completions.create(
                model=self.endpoint.model,
                messages=[
                    {"role": "system", "content": question.system},
                    {"role": "user", "content": question.user},
                ],
                **{name: value for name, value in settings.items() if value is not None},
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(
                f"{self._name()} refuses the request: {error}; check model, url and ${self.endpoint.key}"
            ) from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise UserError(f"{self._name()} rejects the question {question.user[:80]!r}: {error}") from None
        except openai.OpenAIError as error:
            raise ConnectionError(
                f"{self._name()}: no answer after {self.endpoint.retries} retries ({error}); "
                f"all answers so far are kept, run the same command to resume"
            ) from None
        if not getattr(completion, "choices", None):  # some gateways send an error or a web page with status 200
            if retries and not self.stopping.is_set():
                await asyncio.sleep(min(8.0, 2.0 ** (self.endpoint.retries - retries) / 2))
                return await self._complete(question, retries - 1)
            raise ConnectionError(
                f"{self._name()}: its reply is not a chat completion: {str(completion)[:200]!r}; check that url "
                f"ends with /v1; all answers so far are kept, run the same command to resume"
            )
        usage = completion.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        choice = completion.choices[0]
        text = (choice.message.content or "").encode(errors="replace").decode()  # replaces unpaired surrogates
        return Answer(text, choice.finish_reason == "length"), tokens

    def _name(self) -> str:
        return f"the endpoint {self.client.base_url}"
