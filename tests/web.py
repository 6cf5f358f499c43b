"""A real HTTP server of a folder, with ranges, and a line to it that is cut now and then."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web


@contextmanager
def served(folder: Path, cuts: list[int] | None = None) -> Iterator[str]:
    """Yields the address; `cuts`: after how many bytes each of the first connections is closed without a word."""
    ready, address, loop = threading.Event(), [], asyncio.new_event_loop()
    over = asyncio.Event()
    cuts = list(cuts or [])

    async def start() -> None:
        app = web.Application()
        app.router.add_static("/", folder)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            left = cuts.pop(0) if cuts else None
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)

            async def requests() -> None:
                while data := await reader.read(65536):
                    up_writer.write(data)
                up_writer.close()

            sending = asyncio.create_task(requests())
            given = 0
            while data := await up_reader.read(65536):
                if left is not None and given + len(data) > left:
                    writer.write(data[: left - given])
                    break
                writer.write(data)
                await writer.drain()
                given += len(data)
            sending.cancel()
            writer.close()
            up_writer.close()

        line = await asyncio.start_server(forward, "127.0.0.1", 0)
        address.append(f"http://127.0.0.1:{line.sockets[0].getsockname()[1]}")
        ready.set()
        await over.wait()
        line.close()
        await runner.cleanup()

    def run() -> None:
        loop.run_until_complete(start())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
