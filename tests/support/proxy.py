"""A forward proxy for tests: http by whole addresses, https by CONNECT. It counts what passes through it."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.support.web import serving


@contextmanager
def forward_proxy(refuse: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Runs a proxy. Yields its address, and the list of the requests so far: "GET http://..." or "CONNECT host:port".

    `refuse`: the status with which it answers every request instead, e.g. 407.
    """
    passed: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            passed.append(f"CONNECT {self.path}")
            if refuse:
                self.send_error(refuse)
                return
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                self.send_response(200)
                self.end_headers()
                _relay(self.connection, there)
            self.close_connection = True

        def do_GET(self) -> None:
            passed.append(f"{self.command} {self.path}")
            if refuse:
                self.send_error(refuse)
                return
            to = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = HTTPConnection(to.hostname or "", to.port)
            headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
            connection.request(self.command, f"{to.path}{f'?{to.query}' if to.query else ''}", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        yield address, passed


def _relay(here: socket.socket, there: socket.socket) -> None:
    """Passes bytes on in both directions until one side is closed."""
    while True:
        for ready in select.select([here, there], [], [], 60)[0]:
            data = ready.recv(65536)
            if not data:
                return
            (there if ready is here else here).sendall(data)
