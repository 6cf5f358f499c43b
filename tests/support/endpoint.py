"""A local OpenAI-compatible HTTP server that gives scripted answers and records every question."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Asked:
    """The records of the server: its address, and what it was asked."""

    url: str = ""
    answered: Counter[str] = field(default_factory=Counter)  # question -> how often it was answered
    keys: set[str] = field(default_factory=set)
    open: int = 0
    most_open: int = 0


@contextmanager
def scripted(
    answer: Callable[[str], str],
    trouble: dict[int, int] | None = None,
    delay: float = 0.01,
    port: int = 0,
    said: str = "",
) -> Iterator[Asked]:
    """Runs the server until the context ends; yields its records.

    `answer`: returns the answer to a question.
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
        status = trouble.get(count)
        if status == 0:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if status:
            headers = {"Retry-After": "0"}
            return web.json_response({"error": {"message": f"trouble {status}"}}, status=status, headers=headers)
        if said:
            return web.Response(text=said, content_type="application/json" if said.startswith("{") else "text/html")
        asked.open += 1
        asked.most_open = max(asked.most_open, asked.open)
        await asyncio.sleep(delay)
        asked.open -= 1
        asked.answered[text] += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": answer(text)}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, "created": 0}
        )

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
