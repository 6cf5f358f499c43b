"""Sends one question to an endpoint, within the rate limits, and again after trouble. In: a question. Out: a reply."""

import asyncio
import random
from contextlib import suppress
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time
from typing import Any

from randcond.data.texts.endpoint import CHARACTERS_PER_TOKEN, Endpoint
from randcond.data.texts.replies import Rejected, Reply, Trouble, read_error, read_reply
from randcond.launch.errors import UserError
from randcond.launch.urls import HIDDEN, hide_secrets

LONGEST_PAUSE = 120.0  # seconds that an endpoint may ask to wait; if it asks for more, the run ends


class Sender:
    """Sends questions. A context (`async with`), which closes the connections."""

    def __init__(self, endpoint: Endpoint, key: str, stopping: asyncio.Event) -> None:
        """`key`: the API key. `stopping`: when it is set, nothing is sent again."""
        import openai
        from aiolimiter import AsyncLimiter

        self.endpoint, self.stopping = endpoint, stopping
        # No retries by the client: its timeout is per read, so it would not end an answer that comes byte by byte.
        try:
            self._client = openai.AsyncOpenAI(
                api_key=key, base_url=endpoint.url, max_retries=0, timeout=endpoint.timeout
            )
        except (ImportError, ValueError) as error:  # a proxy that is no URL, or that needs a further package (socks)
            raise UserError(f"{endpoint.name()}: the proxy in https_proxy or ALL_PROXY can't serve: {error}") from None
        self._request_limit = AsyncLimiter(max(1.0, endpoint.rpm / 60), 1.0) if endpoint.rpm >= 60 else None
        if 0 < endpoint.rpm < 60:
            self._request_limit = AsyncLimiter(1, 60 / endpoint.rpm)
        self._token_limit = AsyncLimiter(endpoint.tpm, 60.0) if endpoint.tpm else None

    async def __aenter__(self) -> "Sender":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._client.__aexit__(*error)

    async def send(self, system: str, user: str, retries: int) -> Reply | None:
        """Sends a question, again after trouble. Returns None if it should stop and has no reply.

        Raises Refused if this question is refused, Trouble if no try helps, UserError if every question would be
        refused, and ConnectionError if the endpoint asks for a pause of more than two minutes.
        """
        for tried in range(retries + 1):
            try:
                return await self._send_once(system, user)
            except Rejected as error:
                raise UserError(
                    f"{self.endpoint.name()} refuses the request: {self.shown(error)}; check model, url, "
                    f"${self.endpoint.key} and the other settings; all answers so far are kept; if only the question "
                    f"that ends with {user[-40:]!r} is refused, leave out what it asks about"
                ) from None
            except Trouble as trouble:
                if tried < retries or self.stopping.is_set():
                    await self._pause(trouble.pause or min(8.0, 0.5 * 2.0**tried) * random.uniform(0.75, 1.0))
                else:
                    raise
            if self.stopping.is_set():
                break
        return None

    async def wait_for_tokens(self, tokens: float) -> None:
        """Waits until the limit of tokens per minute allows so many more, unless it should stop."""
        if self._token_limit and not self.stopping.is_set():
            await self._token_limit.acquire(min(tokens, self.endpoint.tpm))

    def shown(self, error: Exception) -> str:
        """Returns the text of an error in one line of at most 300 characters, without secrets."""
        text = hide_secrets(str(error))
        for secret in self.endpoint.secrets():  # also short ones, which may be ordinary words elsewhere
            text = text.replace(secret, HIDDEN)
        return " ".join(text.split())[:300]

    async def _pause(self, seconds: float) -> None:
        if seconds > LONGEST_PAUSE:
            raise ConnectionError(
                f"{self.endpoint.name()} asks to wait {seconds:,.0f} s; all answers so far are kept, run the same "
                f"command after that to resume"
            )
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)  # ends early if it should stop

    async def _send_once(self, system: str, user: str) -> Reply:
        """Raises Refused, Rejected or Trouble."""
        import openai

        if self._request_limit:
            await self._request_limit.acquire()
        await self.wait_for_tokens((len(system) + len(user)) / CHARACTERS_PER_TOKEN)
        settings: dict[str, Any] = {"temperature": self.endpoint.temperature, "max_tokens": self.endpoint.max_tokens}
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=self.endpoint.model,
                    messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
                    **{name: value for name, value in settings.items() if value is not None},
                )
        except (TimeoutError, openai.APITimeoutError):
            raise Trouble(f"no complete answer within {self.endpoint.timeout:g} s (timeout=)") from None
        except openai.APIStatusError as error:
            _check_proxy(error.status_code == 407)
            pause = _retry_after(error.response.headers)
            # The client takes a message out of the usual place only: of a list or a plain text it shows nothing.
            said = error.message if " - " in error.message else f"{error.message} - {error.response.text}"
            raise read_error(error.status_code, error.body, said, pause) from None
        except openai.OpenAIError as error:
            _check_proxy(type(error.__cause__).__name__ == "ProxyError" and "407" in str(error.__cause__))
            raise Trouble(f"{error} {error.__cause__ or ''}") from None
        return read_reply(response.content)


def _check_proxy(refused: bool) -> None:
    if refused:
        raise UserError("the proxy refuses access (407); check http_proxy and https_proxy") from None


def _retry_after(headers: Any) -> float | None:
    """Returns the seconds that the headers of a reply ask to wait, or None. `headers`: a mapping, ignoring case."""
    text = headers.get("retry-after-ms") or headers.get("retry-after") or ""
    try:
        seconds = float(text) / (1000 if headers.get("retry-after-ms") else 1)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time()
        except (ValueError, OverflowError):
            return None
    return seconds if isfinite(seconds) and seconds > 0 else None
