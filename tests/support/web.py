"""Serves a folder by real servers (aiohttp, nginx, an S3 API), over connections that can be cut."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web


@contextmanager
def line_to(port: int, cuts: list[int]) -> Iterator[int]:
    """Yields a port that forwards to another port, and cuts some connections.

    `cuts`: connection i is closed without notice after cuts[i] bytes of the response.
    """
    cuts, given_port = list(cuts), []

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

    async def start(ready: threading.Event, over: asyncio.Event) -> None:
        line = await asyncio.start_server(forward, "127.0.0.1", 0)
        given_port.append(line.sockets[0].getsockname()[1])
        ready.set()
        await over.wait()
        line.close()

    with _in_thread(start):
        yield given_port[0]
    assert not cuts, "not every cut was made"


@contextmanager
def _in_thread(start: Any) -> Iterator[None]:
    """Runs `start(ready, over)` in an event loop in a thread until the context ends."""
    ready, held = threading.Event(), []

    async def main() -> None:
        over = asyncio.Event()
        held.append((asyncio.get_running_loop(), over))
        await start(ready, over)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)  # run() also cancels open connections
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        loop, over = held[0]
        loop.call_soon_threadsafe(over.set)
        thread.join(10)


@contextmanager
def served(folder: Path, cuts: list[int] | None = None, busy: int = 0) -> Iterator[str]:
    """Serves a folder by aiohttp's own server, with cuts (see line_to()); yields the address.

    `busy`: how many of the first requests are answered with 503.
    """
    ports: list[int] = []
    left = [busy]

    @web.middleware
    async def at_times(request: web.Request, handler: Any) -> web.StreamResponse:
        left[0] -= 1
        if left[0] >= 0:
            raise web.HTTPServiceUnavailable
        return await handler(request)

    async def start(ready: threading.Event, over: asyncio.Event) -> None:
        app = web.Application(middlewares=[at_times])
        app.router.add_static("/", folder)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        ready.set()
        await over.wait()
        await runner.cleanup()

    with _in_thread(start), line_to(ports[0], cuts or []) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def plain(folder: Path) -> Iterator[str]:
    """Serves a folder by Python's own server, which does not support range requests; yields the address."""
    with serving(partial(SimpleHTTPRequestHandler, directory=str(folder))) as address:
        yield address


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    """Runs Python's own server with a request handler; yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """A context in which one of Python's own servers answers, in a thread."""
    # By default the server looks every half second whether it shall end, and many tests have a server of their own.
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield
    server.shutdown()


class Request(NamedTuple):
    """A request that a scripted server got."""

    method: str
    path: str  # with its query
    headers: dict[str, str]  # names in lower case


def reply(body: bytes = b"", status: int = 200, cut: int | None = None, **headers: str | None) -> bytes:
    """Returns an HTTP answer as bytes. `cut`: only the first bytes of the body are sent.

    `headers`: with _ for -, e.g. ETag='"1"'; None leaves a header out. Content_Length is that of the body by default.
    """
    given = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"HTTP/1.1 {status} Any", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body[:cut]


@contextmanager
def scripted(answer: Callable[[Request], bytes]) -> Iterator[tuple[str, list[Request]]]:
    """Runs a server that sends the bytes which `answer` returns, and closes the connection after each answer.

    Yields its address and the list of the requests so far. It answers HEAD too, without a body.
    """
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.rfile.read(int(headers.get("content-length", 0)))
            requests.append(Request(self.command, self.path, headers))
            said = answer(requests[-1])
            self.wfile.write(said.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if self.command == "HEAD" else said)
            self.close_connection = True

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        yield address, requests


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _running(command: list[str], port: int, log: Path, **environment: str) -> Iterator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        for _ in range(200):
            assert process.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(10)


NGINX = """
daemon off; worker_processes 1; pid {work}/pid; error_log {work}/error.log; user root;
events {{ worker_connections 64; }}
http {{
  access_log {work}/access.log; client_body_temp_path {work}/a; proxy_temp_path {work}/b; fastcgi_temp_path {work}/c;
  uwsgi_temp_path {work}/d; scgi_temp_path {work}/e;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


@contextmanager
def nginx(folder: Path, work: Path, cuts: list[int]) -> Iterator[str]:
    """Serves a folder by nginx, with cuts (see line_to()); yields the address."""
    work.mkdir()
    port, program = free_port(), shutil.which("nginx") or "/usr/sbin/nginx"
    (work / "nginx.conf").write_text(NGINX.format(work=work, port=port, folder=folder))
    command = [program, "-c", str(work / "nginx.conf"), "-e", str(work / "error.log")]
    with _running(command, port, work / "log"), line_to(port, cuts) as line:
        yield f"http://127.0.0.1:{line}"


@contextmanager
def s3(folder: Path, work: Path, cuts: list[int]) -> Iterator[dict[str, str]]:
    """Serves a folder as s3://bucket/cache by moto's S3 API, with cuts; yields the environment variables to use."""
    work.mkdir()
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, work / "log"):
        from s3fs import S3FileSystem

        system = S3FileSystem(key="key", secret="secret", endpoint_url=f"http://127.0.0.1:{port}")
        system.mkdir("bucket")
        for path in folder.iterdir():
            if path.is_file():
                system.put_file(str(path), f"bucket/cache/{path.name}")
        with line_to(port, cuts) as line:
            yield {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line}"}
