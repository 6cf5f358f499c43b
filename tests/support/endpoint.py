"""A local OpenAI-compatible HTTP server that gives scripted answers and records every question."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Asked:
    """The records of the server: its address, and what it was asked."""

    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)  # question -> how often it was asked
    answered: Counter[str] = field(default_factory=Counter)  # question -> how often it was answered, with status 200
    keys: set[str] = field(default_factory=set)
    open: int = 0
    most_open: int = 0


@dataclass
class Said:
    """A reply of any kind."""

    body: Any  # text and bytes are sent as they are, anything else as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    every: float = 0.0  # seconds between two bytes
    cut: bool = False  # the connection ends in the middle of the reply

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Sends the reply."""
        data = self.body if isinstance(self.body, str | bytes) else json.dumps(self.body)
        data = data.encode() if isinstance(data, str) else data
        kind = "application/json" if data.lstrip()[:1] in (b"{", b"[") else "text/html"
        response = web.StreamResponse(status=self.status, headers={"Content-Type": kind, **self.headers})
        response.content_length = len(data)
        await response.prepare(request)
        try:
            if self.every:
                for place in range(len(data)):
                    await response.write(data[place : place + 1])
                    await asyncio.sleep(self.every)
            else:
                await response.write(data[: len(data) // 2] if self.cut else data)
            if self.cut and request.transport is not None:
                request.transport.close()
        except OSError:
            pass  # the client has closed the connection
        return response


def completion(content: Any = None, finish: Any = "stop", usage: Any = (7, 3), **message: Any) -> dict[str, Any]:
    """Returns a chat completion. `usage`: (tokens in, tokens out), or what stands there instead."""
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {
        "id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, "created": 0
    }  # fmt: skip


@contextmanager
def scripted(
    answer: Callable[[str], str | Said],
    trouble: dict[int, int] | None = None,
    delay: float = 0.01,
    port: int = 0,
    said: str = "",
) -> Iterator[Asked]:
    """Runs the server until the context ends; yields its records.

    `answer`: returns the answer to a question, or a reply of any kind.
    `trouble`: number of a request (1, 2, ...) -> its HTTP status, instead of an answer; 0 cuts the connection.
    `said`: the text of every reply, instead of a completion.
    """
    asked, ready, loop, over = Asked(), threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    trouble = dict(trouble or {})
    count = 0

    async def complete(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        asked.keys.add(request.headers.get("Authorization", ""))
        body = await request.json()
        text = body["messages"][-1]["content"]
        asked.requests[text] += 1
        status = trouble.get(count)
        if status == 0:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if status:
            headers = {"Retry-After": "0"}
            return web.json_response({"error": {"message": f"trouble {status}"}}, status=status, headers=headers)
        if said:
            return await Said(said).send(request)
        asked.open += 1
        asked.most_open = max(asked.most_open, asked.open)
        await asyncio.sleep(delay)
        asked.open -= 1
        reply = answer(text)
        if isinstance(reply, str):
            reply = Said(completion(reply))
        if reply.status == 200:
            asked.answered[text] += 1
        return await reply.send(request)

    async def start() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True).start()
        asked.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(start()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield asked
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
