"""The connections between rank 0 and the other ranks: sockets, and messages as lines of JSON."""

import json
import platform
import socket
from typing import Any


class Inbox:
    """Assembles lines of JSON from the pieces that a connection receives."""

    def __init__(self) -> None:
        self.incomplete = b""
        self.rank: int | None = None  # the rank at the other end, known from its first message on

    def take(self, data: bytes) -> list[dict[str, Any]]:
        """Adds the bytes that arrived. Returns the complete messages; [{}] if they are none of ours."""
        *lines, self.incomplete = (self.incomplete + data).split(b"\n")
        try:
            return [message for message in map(json.loads, lines) if isinstance(message, dict)]
        except ValueError:
            return [{}]  # not sent by a rank; without a token the receiver closes the connection


def listen() -> socket.socket:
    """Returns a socket of rank 0 on a free port, for IPv6 and IPv4 where the host has both."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """Connects to rank 0. `timeout`: seconds. Raises ConnectionError naming both hosts."""
    try:
        return socket.create_connection((host, port), timeout=timeout)
    except OSError as error:
        raise ConnectionError(
            f"{platform.node()} can't connect to the heartbeat of rank 0 at {host}, port {port}: {error}; "
            f"check that the hosts can open TCP connections to each other"
        ) from None
