"""Notices a dead, unreachable or hung rank within a bounded time, names it, and ends the job on every host.

Every rank keeps one TCP connection to the first and says over it, every few seconds, that it lives and where it is.
A connection that closes is a dead rank, silence an unreachable one, no progress of anybody a hung one. The first rank
gives the verdict, the others hear it or, when the first one is gone, reach their own; all leave with LOST_RANK.
"""

import json
import os
import platform
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

from randcond.launch.runtime.exit_codes import LOST_RANK, exit_code, record_first_exit, report_error
from randcond.launch.runtime.logs import FILE_ONLY, dump_threads, log
from randcond.train.engine import Engine

# How torch.distributed's backends put it that a peer is gone; anything else a rank raises is its own failure.
_PEER_IS_GONE = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "Timed out", "timed out")


@dataclass
class Sign:
    """What was last heard of a rank."""

    host: str = "?"
    pid: int = 0
    count: int = 0  # of the places it has passed
    step: int = 0
    place: str = "starting"
    at: float = 0.0  # when, on the listener's clock


class Heartbeat:
    """A context around training: `at` says where this rank is; a thread does the rest."""

    def __init__(self, engine: Engine, silence: float, stall: float) -> None:
        """`silence`: seconds without a sign of a rank, `stall`: seconds without progress of any, that end the job."""
        self.engine, self.silence, self.stall = engine, silence, stall
        self.interval = min(5.0, silence / 6)
        self.mine = Sign(platform.node(), os.getpid())
        self._over = threading.Event()
        self._lock = threading.Lock()  # of what is sent
        if engine.ranks == 1:
            return
        listener = _listen() if engine.rank == 0 else None
        port = listener.getsockname()[1] if listener else 0
        self.port, self.token, self.chief = engine.broadcast((port, secrets.token_hex(16), platform.node()))
        if listener:
            target = self._listen_to_all
            self._listener = listener
        else:
            self._line = _connect(os.environ["MASTER_ADDR"], self.port, silence)
            self._line.settimeout(self.interval)
            target = self._report_to_first
            self._send()
        threading.Thread(target=target, name="heartbeat", daemon=True).start()

    def at(self, step: int, place: str) -> None:
        """Says that this rank has come to a place of a step: progress."""
        self.mine.step, self.mine.place = step, place
        self.mine.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.engine.ranks == 1:
            return
        if error is None or isinstance(error, SystemExit):
            self.engine.barrier()  # all are done: until then each may still write, and says that it lives
            self._over.set()
            self.engine.barrier()  # nobody listens any more when the first connection closes
        elif isinstance(error, Exception) and any(sign in str(error) for sign in _PEER_IS_GONE):
            time.sleep(self.silence + 2 * self.interval)  # the verdict, which ends this process, says who it was
        elif report_error(error) and self.engine.rank:  # now: the launcher ends this rank once the others know
            self._send(failed=f"{type(error).__name__}: {error}", code=exit_code(error))
        else:
            verdict = f"{self._name(0)} failed: {type(error).__name__}: {error}"
            self._tell({"verdict": verdict, "code": exit_code(error)})
        self._over.set()

    # The first rank ---------------------------------------------------------------------------------------------------

    def _listen_to_all(self) -> None:
        began = time.monotonic()
        self.signs = {rank: Sign(at=began) for rank in range(self.engine.ranks)}
        self._lines: dict[int, socket.socket] = {}
        waiting = selectors.DefaultSelector()
        waiting.register(self._listener, selectors.EVENT_READ)
        moved, counts = began, 0
        while not self._over.is_set():
            for key, _ in waiting.select(timeout=min(1.0, self.interval)):
                if key.fileobj is self._listener:
                    line, _ = self._listener.accept()
                    line.setblocking(False)
                    waiting.register(line, selectors.EVENT_READ, _Inbox())
                else:
                    self._hear(key.fileobj, key.data, waiting)
            now = time.monotonic()
            self.mine.at = now
            self.signs[0] = self.mine
            for rank, sign in self.signs.items():
                if now - sign.at > self.silence:
                    self._judge(f"{self._name(rank)} has not been heard of for {now - sign.at:.0f} s")
            if counts != (counts := sum(sign.count for sign in self.signs.values())):
                moved = now
            elif now - moved > self.stall:
                last = min(sign.count for sign in self.signs.values())
                behind = [self._name(rank) for rank, sign in self.signs.items() if sign.count == last]
                self._judge(f"no progress for {now - moved:.0f} s; furthest behind: {', '.join(behind[:8])}")

    def _hear(self, line: Any, inbox: "_Inbox", waiting: selectors.BaseSelector) -> None:
        """Takes what a rank's connection holds: signs of life, a failure, or its end."""
        try:
            data = line.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for message in inbox.take(data):
            if message.pop("token", "") != self.token:
                data = b""
                break
            inbox.rank = message.pop("rank")
            self._lines[inbox.rank] = line
            failed, code = message.pop("failed", None), message.pop("code", LOST_RANK)
            self.signs[inbox.rank] = Sign(**message, at=time.monotonic())
            if failed:
                self._judge(f"{self._name(inbox.rank)} failed: {failed}", code)
            self._answer(line, {})
        if not data:
            waiting.unregister(line)
            line.close()
            if inbox.rank is not None and not self._over.is_set():
                time.sleep(0.2)  # time for this rank to have come to its own end of the run
                if not self._over.is_set():
                    self._judge(f"{self._name(inbox.rank)} died")

    def _name(self, rank: int) -> str:
        sign = self.mine if rank == self.engine.rank else self.signs[rank]
        return f"rank {rank} on host {sign.host} (process {sign.pid}, last heard of in step {sign.step}, {sign.place})"

    def _judge(self, verdict: str, code: int = LOST_RANK) -> None:
        if not self._over.is_set():
            self._tell({"verdict": verdict, "code": code})
            leave(verdict, True, code)

    def _tell(self, message: dict[str, Any]) -> None:
        for line in list(self._lines.values()):
            self._answer(line, message)

    def _answer(self, line: socket.socket, message: dict[str, Any]) -> None:
        try:
            line.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # its own silence or end will tell

    # The other ranks --------------------------------------------------------------------------------------------------

    def _report_to_first(self) -> None:
        inbox, heard, sent = _Inbox(), time.monotonic(), 0.0
        first = f"rank 0 on host {self.chief}"
        console = self.engine.rank == 1  # one of those who outlive the first rank says so for all
        while not self._over.is_set():
            if time.monotonic() - sent > self.interval:
                self._send()
                sent = time.monotonic()
            try:
                data = self._line.recv(65536)
            except TimeoutError:
                data = None
            except OSError:
                data = b""
            if data:
                heard = time.monotonic()
                for message in inbox.take(data):
                    if "verdict" in message and not self._over.is_set():
                        leave(message["verdict"], False, message["code"])
            elif data == b"":
                time.sleep(0.2)  # time for this rank to have come to its own end of the run
                if not self._over.is_set():
                    leave(f"{first} died, or ended without saying why", console)
            if time.monotonic() - heard > self.silence and not self._over.is_set():
                leave(f"{first} has not been heard of for {time.monotonic() - heard:.0f} s", console)

    def _send(self, **more: str | int) -> None:
        sign = {key: value for key, value in vars(self.mine).items() if key != "at"}
        message = {"token": self.token, "rank": self.engine.rank, **sign, **more}
        try:
            with self._lock:
                self._line.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # the reading side sees that the connection is gone


class _Inbox:
    """Lines of JSON out of the pieces that a connection brings."""

    def __init__(self) -> None:
        self.rest = b""
        self.rank: int | None = None  # whose connection it is, once it has said so

    def take(self, data: bytes) -> list[dict[str, Any]]:
        *lines, self.rest = (self.rest + data).split(b"\n")
        try:
            return [message for message in map(json.loads, lines) if isinstance(message, dict)]
        except ValueError:
            return [{}]  # not one of ours: it has no token


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _connect(host: str, port: int, patience: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=patience)
    except OSError as error:
        raise ConnectionError(
            f"{platform.node()} can't reach rank 0's heartbeat at {host}, port {port}: {error}"
        ) from None


def leave(verdict: str, console: bool, code: int = LOST_RANK) -> NoReturn:
    """Ends this process, whatever its main thread waits for; where each thread was goes into the rank's log."""
    text = f"error: training ended: {verdict}. The last checkpoint is sound; the same command goes on from it."
    record_first_exit(code)
    try:
        log.error(text, extra=None if console else FILE_ONLY)
        dump_threads()
    finally:
        os._exit(code)  # though the log has no room
