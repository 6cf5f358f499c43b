"""The settings of a language model's endpoint, and the estimate of what questions cost."""

import os
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic.dataclasses import dataclass

from randcond.launch.config.parsing import read_settings
from randcond.launch.config.sections import STRICT
from randcond.launch.errors import UserError
from randcond.launch.install.extras import need
from randcond.launch.urls import remember, remember_secret, show_url

CHARACTERS_PER_TOKEN = 4.0  # approximation for English text, used in cost estimates
_MINIMA = (
    ("concurrency", 1), ("rpm", 0), ("tpm", 0), ("retries", 0), ("price_in", 0), ("price_out", 0), ("max_unusable", 0)
)  # fmt: skip


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
    timeout: float = 120.0  # seconds until an answer must be complete
    temperature: float | None = None  # null: the model's default
    max_tokens: int | None = None  # maximum tokens of one answer; null: the model's default
    price_in: float = 0.0  # US dollars per million tokens of questions
    price_out: float = 0.0  # US dollars per million tokens of answers
    max_cost: float = 0.0  # US dollars; a higher estimate stops the command before any question; 0: no limit
    max_unusable: float = 0.5  # stop if more than this share of the first 100 questions has no usable answer; 1: never

    def __post_init__(self) -> None:
        # pydantic collects a ValueError, and read_settings() makes a UserError with the key from it.
        for name, minimum in _MINIMA:
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}: is {getattr(self, name)}, expected at least {minimum}")
        if self.timeout <= 0:
            raise ValueError(f"timeout: is {self.timeout:g}, expected more than 0 seconds")
        if self.max_cost and not (self.price_in or self.price_out):
            raise ValueError("max_cost: needs price_in and price_out")
        if self.url is not None and not _is_web_address(self.url):
            raise ValueError("url: expected http://HOST... or https://HOST...")
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key):  # not shown: it may be the API key itself
            raise ValueError("key: expected the name of an environment variable that contains the API key")

    def api_key(self) -> str:
        """Returns the API key. From here on `hide_secrets` hides it, and the secrets of the URL.

        Raises UserError if the endpoint needs a key and its variable is not set.
        """
        key = os.environ.get(self.key, "").strip()
        if not key and self.url is None and "OPENAI_BASE_URL" not in os.environ:
            raise UserError(f"no API key: set the environment variable {self.key}, or give url=... of another endpoint")
        if not key.isascii() or not key.isprintable():
            raise UserError(f"${self.key}: is no API key: it contains characters other than printable ASCII")
        remember(self._url())
        remember_secret(urlsplit(self._url()).username or "")  # some providers take the key as the user
        remember_secret(key)
        return key or "none"  # other endpoints may need no key, but the client does

    def secrets(self) -> list[str]:
        """Returns the API key, and user, password and values of the query of the URL, if they have 3 characters."""
        parts = urlsplit(self._url())
        found = [os.environ.get(self.key, "").strip(), parts.username, parts.password]
        found += [value for _, value in parse_qsl(parts.query)]
        texts = {text for each in found if each for text in (each, unquote(each)) if len(text) > 2}
        return sorted(texts, key=len, reverse=True)

    def name(self) -> str:
        """Returns the endpoint's name for messages: its URL without user, password and query."""
        return f"the endpoint {show_url(self._url())}"

    def _url(self) -> str:
        return self.url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # the port is no number, or the brackets of an IPv6 address are wrong
        return False


def read_endpoint(words: Iterable[str]) -> Endpoint:
    """Parses `key=value` arguments to an endpoint.

    Raises UserError if a key or value is wrong, or if the packages that ask an endpoint are not installed.
    """
    endpoint = read_settings(Endpoint, list(words))
    need("llm", "asking a language model")
    return endpoint


def estimate(endpoint: Endpoint, characters: int, questions: int, answer_tokens: float) -> str:
    """Returns one line with the tokens, cost and time that questions need.

    `characters`: those of all questions together. `questions`: their number. `answer_tokens`: tokens per answer.
    Raises UserError if the cost is above `max_cost`.
    """
    tokens_in, tokens_out = characters / CHARACTERS_PER_TOKEN, questions * answer_tokens
    price = cost(endpoint, tokens_in, tokens_out)
    line = (
        f"{questions:,} questions for {endpoint.model}, "
        f"about {tokens_in / 1e6:.2f}M tokens in, {tokens_out / 1e6:.2f}M out"
    )
    if endpoint.price_in or endpoint.price_out:
        line += f", ${price:,.2f}"
    if endpoint.rpm or endpoint.tpm:
        minutes = max(
            questions / endpoint.rpm if endpoint.rpm else 0,
            (tokens_in + tokens_out) / endpoint.tpm if endpoint.tpm else 0,
        )
        line += f", at least {minutes:,.0f} min at this rate"
    if endpoint.max_cost and price > endpoint.max_cost:
        raise UserError(f"max_cost: the estimate is above ${endpoint.max_cost:g}, no question was sent: {line}")
    return line


def cost(endpoint: Endpoint, tokens_in: float, tokens_out: float) -> float:
    """Returns the cost of tokens in US dollars."""
    return (tokens_in * endpoint.price_in + tokens_out * endpoint.price_out) / 1e6
