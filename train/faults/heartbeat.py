"""The heartbeat: detects a dead, unreachable or hung rank within a bounded time, names it, and ends the job everywhere.

Every rank keeps one TCP connection to rank 0. Every few seconds it sends its step and the phase of the step. A closed
connection means that the rank is dead. A silent connection means that it is unreachable. If no rank makes progress, the
job is hung. Rank 0 detects these cases and sends the verdict, the reason why the job ends, to the other ranks. If rank
0 itself is lost, every other rank ends by itself. All exit with LOST_RANK, or with the code of a rank that failed.

A process that stood still (SIGSTOP) and goes on knows it from its own clock. It does not count that time as silence of
the others. If they have given it up meanwhile, it names itself and not them.
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

from torch.distributed import DistError

from randcond.launch.runtime.exit_codes import (
    INTERRUPTED,
    LOST_RANK,
    USER_ERROR,
    exit_code,
    record_first_exit,
    report_error,
)
from randcond.launch.runtime.logs import FILE_ONLY, dump_threads, log
from randcond.train.engine import Engine
from randcond.train.faults.connections import Inbox, connect, listen
from randcond.train.faults.standstill import Standstill

# gloo raises a plain RuntimeError for everything, so only its message tells that a peer is lost.
_GLOO_MESSAGES = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "Timed out", "timed out")


def peer_is_lost(error: BaseException) -> bool:
    """Returns True if a collective reports that another rank is lost. Any other error is this rank's own."""
    if isinstance(error, DistError):  # NCCL, the rendezvous store
        return True
    return type(error) is RuntimeError and any(text in str(error) for text in _GLOO_MESSAGES)


@dataclass
class RankStatus:
    """The last report of a rank. All fields but `received_at` are sent, as JSON keys."""

    host: str = "?"
    pid: int = 0
    count: int = 0  # calls of Heartbeat.report() so far
    step: int = 0
    place: str = "starting"  # the phase of the step
    received_at: float = 0.0  # time.monotonic() of rank 0, in seconds


class Heartbeat:
    """A context that surrounds the training. The training calls report(); a thread sends and receives the messages."""

    def __init__(self, engine: Engine, silence: float, stall: float) -> None:
        """Connects this rank to rank 0 and starts the thread.

        The job ends if a rank sends no message for `silence` seconds, or if no rank makes progress for `stall` seconds.
        """
        self.engine, self.silence, self.stall = engine, silence, stall
        self.interval = min(5.0, silence / 6)  # seconds between the messages of a rank
        self.status = RankStatus(platform.node(), os.getpid())
        self._finished = threading.Event()
        self._send_lock = threading.Lock()
        self._own_clock = Standstill(silence - 2 * self.interval)  # after this time, the others may give up this rank
        if engine.ranks == 1:
            return
        listener = listen() if engine.rank == 0 else None
        port = listener.getsockname()[1] if listener else 0
        self.port, self.token, self.rank_0_host = engine.broadcast((port, secrets.token_hex(16), platform.node()))
        if listener:
            target = self._watch_ranks
            self._listener = listener
        else:
            self._connection = connect(os.environ["MASTER_ADDR"], self.port, silence)
            self._connection.settimeout(self.interval)
            target = self._report_to_rank_0
            self._send_status()
        threading.Thread(target=target, name="heartbeat", daemon=True).start()

    def report(self, step: int, place: str) -> None:
        """Reports progress: this rank has reached `place`, a phase of the step."""
        self.status.step, self.status.place = step, place
        self.status.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.engine.ranks == 1:
            return
        if error is None or isinstance(error, SystemExit):
            self.engine.barrier()  # other ranks may still write files; until then the heartbeat goes on
            self._finished.set()
            self.engine.barrier()  # now no rank watches any more, and connections may close
        elif peer_is_lost(error):
            # Another rank is lost. Wait for the verdict, which names that rank and ends this process.
            time.sleep(self.silence + 2 * self.interval)
        elif isinstance(error, KeyboardInterrupt):  # Ctrl-C reaches every rank, one a little before the others
            self._send_interrupted()
        elif report_error(error) and self.engine.rank:
            # Sent now, because the launcher ends this rank once the others know.
            self._send_status(failed=f"{type(error).__name__}: {error}", code=exit_code(error))
        else:
            verdict = f"{self._describe(0)} failed: {type(error).__name__}: {error}"
            self._send_to_all({"verdict": verdict, "code": exit_code(error)})
        self._finished.set()

    def _send_interrupted(self) -> None:
        if self.engine.rank:
            self._send_status(failed="was interrupted", code=INTERRUPTED)
        else:
            self._send_to_all({"verdict": f"{self._describe(0)} was interrupted", "code": INTERRUPTED})

    # Rank 0 -----------------------------------------------------------------------------------------------------------

    def _watch_ranks(self) -> None:
        started = time.monotonic()
        self.statuses = {rank: RankStatus(received_at=started) for rank in range(self.engine.ranks)}
        self._connections: dict[int, socket.socket] = {}
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        last_progress, total_count = started, 0
        self._own_clock.start()
        while not self._finished.is_set():
            for key, _ in selector.select(timeout=min(1.0, self.interval)):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    connection.setblocking(False)
                    selector.register(connection, selectors.EVENT_READ, Inbox())
                else:
                    self._receive(key.fileobj, key.data, selector)
            now = time.monotonic()
            if stood_still := self._noticed_standstill():
                last_progress = min(now, last_progress + stood_still)
                for status in self.statuses.values():
                    status.received_at = min(now, status.received_at + stood_still)
            self.status.received_at = now
            self.statuses[0] = self.status
            for rank, status in self.statuses.items():
                if now - status.received_at > self.silence:
                    self._end_job(f"{self._describe(rank)} has sent no heartbeat for {now - status.received_at:.0f} s")
            if total_count != (total_count := sum(status.count for status in self.statuses.values())):
                last_progress = now
            elif now - last_progress > self.stall:
                lowest = min(status.count for status in self.statuses.values())
                behind = [self._describe(rank) for rank, status in self.statuses.items() if status.count == lowest]
                self._end_job(f"no progress for {now - last_progress:.0f} s; furthest behind: {', '.join(behind[:8])}")

    def _receive(self, connection: Any, inbox: "Inbox", selector: selectors.BaseSelector) -> None:
        """Reads the messages of a rank. Ends the job if the rank reports a failure or has closed the connection."""
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for message in inbox.take(data):
            if message.pop("token", "") != self.token:  # not a rank of this job: close the connection below
                data = b""
                break
            inbox.rank = message.pop("rank")
            self._connections[inbox.rank] = connection
            failed, code = message.pop("failed", None), message.pop("code", LOST_RANK)
            self.statuses[inbox.rank] = RankStatus(**message, received_at=time.monotonic())
            if failed:
                how = failed if code == INTERRUPTED else f"failed: {failed}"
                self._end_job(f"{self._describe(inbox.rank)} {how}", code)
            self._send_message(connection, {})
        if not data:
            selector.unregister(connection)
            connection.close()
            if inbox.rank is not None and not self._finished.is_set():
                time.sleep(0.2)  # the run may have finished; give rank 0 time to notice
                if not self._finished.is_set():
                    self._noticed_standstill()
                    self._end_job(self._own_fault(0) or f"{self._describe(inbox.rank)} died")

    def _noticed_standstill(self) -> float:
        """Returns the seconds that this process has just stood still. Logs them."""
        if seconds := self._own_clock.tick():
            log.warning(f"rank {self.engine.rank} stood still for {seconds:.0f} s: it was stopped, or had no CPU time")
        return seconds

    def _own_fault(self, rank: int) -> str:
        """Returns the verdict that this rank has been given up because it stood still; "" if it has not stood still."""
        if not self._own_clock.is_recent(self.silence):
            return ""
        place = f"rank {rank} on host {self.status.host} (process {self.status.pid})"
        return f"{place} stood still for {self._own_clock.seconds:.0f} s, and the other ranks have given it up"

    def _describe(self, rank: int) -> str:
        status = self.status if rank == self.engine.rank else self.statuses[rank]
        last_report = f"last report: step {status.step}, {status.place}"
        return f"rank {rank} on host {status.host} (process {status.pid}, {last_report})"

    def _end_job(self, verdict: str, code: int = LOST_RANK) -> None:
        if not self._finished.is_set():
            self._send_to_all({"verdict": verdict, "code": code})
            end_process(verdict, code != USER_ERROR, code)  # the rank that made the mistake has shown it

    def _send_to_all(self, message: dict[str, Any]) -> None:
        for connection in list(self._connections.values()):
            self._send_message(connection, message)

    def _send_message(self, connection: socket.socket, message: dict[str, Any]) -> None:
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # _watch_ranks() detects the lost connection

    # The other ranks --------------------------------------------------------------------------------------------------

    def _report_to_rank_0(self) -> None:
        inbox, last_received, last_sent = Inbox(), time.monotonic(), 0.0
        rank_0 = f"rank 0 on host {self.rank_0_host}"
        to_console = self.engine.rank == 1  # if rank 0 is lost, one rank reports it on the console for all
        self._own_clock.start()
        while not self._finished.is_set():
            if time.monotonic() - last_sent > self.interval:
                self._send_status()
                last_sent = time.monotonic()
            try:
                data = self._connection.recv(65536)
            except TimeoutError:
                data = None
            except OSError:
                data = b""
            last_received = min(time.monotonic(), last_received + self._noticed_standstill())
            if data:
                last_received = time.monotonic()
                for message in inbox.take(data):
                    if "verdict" in message and not self._finished.is_set():
                        end_process(message["verdict"], False, message["code"])
            elif data == b"":
                time.sleep(0.2)  # the run may have finished; give this rank time to notice
                if not self._finished.is_set():
                    if own_fault := self._own_fault(self.engine.rank):
                        end_process(own_fault, to_console=True)
                    end_process(f"{rank_0} died, or ended without giving a reason", to_console)
            silent_s = time.monotonic() - last_received
            if silent_s > self.silence and not self._finished.is_set():
                end_process(f"{rank_0} has sent no heartbeat for {silent_s:.0f} s", to_console)

    def _send_status(self, **more: str | int) -> None:
        status = {key: value for key, value in vars(self.status).items() if key != "received_at"}
        message = {"token": self.token, "rank": self.engine.rank, **status, **more}
        try:
            with self._send_lock:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # the receiving thread detects the lost connection


def end_process(verdict: str, to_console: bool, code: int = LOST_RANK) -> NoReturn:
    """Ends this process at once, even if its main thread is blocked.

    Logs the verdict, on the console only if `to_console`, and writes the stack of every thread to the rank's log. After
    Ctrl-C, only the rank's log names the rank that ended first.
    """
    text = f"training ended: {verdict.rstrip('. ')}."
    if code != USER_ERROR:  # the same command would make the same mistake
        text += " The last checkpoint is intact; run the same command to resume from it."
    record_first_exit(code)
    try:
        if code == INTERRUPTED:
            log.info(text, extra=FILE_ONLY)
        else:
            log.error(f"error: {text}", extra=None if to_console else FILE_ONLY)
            dump_threads()
    finally:
        os._exit(code)  # even if the log can't be written, for example because the disk is full
