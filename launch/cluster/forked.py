"""Starts stages in processes forked from a server (fork_server.py). In: the stages of a plan. Out: their exit codes."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from randcond.launch.cluster.commands import Step
from randcond.launch.cluster.fork_server import Request
from randcond.launch.runtime.processes import prepare_child, thread_limits

_ENGINE = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "randcond.train.engine.zero")
_TRAINING = ("randcond.train.loop", *_ENGINE, "torch.utils.tensorboard", "torch._dynamo")
PRELOADED = {  # module of a stage -> what it imports, which takes most of the time until its first line
    "randcond.data": ("randcond.data.captions.pool", "randcond.data.cache.caching"),
    "randcond.train": _TRAINING,
    "randcond.train.dryrun": ("randcond.train.dryrun",),
    "randcond.eval": ("randcond.eval.stage",),
    "randcond.eval.report": ("randcond.eval.report.report",),
}


class ForkedProcess:
    """A running stage. It has the methods of `subprocess.Popen` that the supervisor needs."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self.pid = pid  # also the number of its process group
        self.returncode: int | None = None
        self._line = line

    def poll(self) -> int | None:
        """Returns the exit code, or None while the stage runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(timeout=0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit code. Raises TimeoutExpired."""
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                answer = _answer(self._line)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a forked stage", timeout or 0) from None
            self.returncode = answer["code"] if answer else -signal.SIGKILL
        return self.returncode


class ForkServer:
    """A process that has imported the libraries of some stages, and forks them. It starts with its first stage."""

    def __init__(self, first: Sequence[str], others: Sequence[str], environment: Mapping[str, str]) -> None:
        """first: the modules that the first stage imports; others: those of the others, imported while it runs."""
        self._modules, self._environment = [",".join(first), ",".join(others)], environment
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, request: Request, environment: dict[str, str]) -> ForkedProcess | None:
        """Starts a stage with this environment. Returns None if the server can't: a library may be missing."""
        if self._process is None:
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-u", "-m", "randcond.launch.cluster.fork_server", str(theirs.fileno())]
            self._process = subprocess.Popen(
                [*command, *self._modules],
                env=self._environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=prepare_child,
            )
            theirs.close()
            self._line = ours
        assert self._line is not None
        changed: dict[str, str | None] = {
            name: environment.get(name)
            for name in {*environment, *self._environment}
            if environment.get(name) != self._environment.get(name)
        }
        try:
            self._line.settimeout(None)
            self._line.sendall(Request(request.module, request.words, request.ranks, changed, request.port).line())
            answer = _answer(self._line)
        except OSError:
            answer = {}
        return ForkedProcess(self._line, answer["pid"]) if answer else None

    def close(self) -> None:
        """Ends the server."""
        if self._process is not None and self._line is not None:
            self._line.close()
            self._process.kill()
            self._process.wait()


@contextmanager
def fork_server(steps: Sequence[Step], environment: Mapping[str, str]) -> Iterator[ForkServer | None]:
    """Yields what forks the steps of a plan; None if it would save nothing, or if they need other numbers of threads.

    environment: of the server. The libraries read the number of threads from it when they are imported.
    """
    forked = [step.forked for step in steps if step.forked]
    threads = {step.threads for step in steps if step.distributed}
    if len(forked) < 2 or len(threads) > 1:
        yield None
        return
    limits = thread_limits(next(iter(threads), None))
    first = PRELOADED[forked[0].module]
    others = dict.fromkeys(name for each in forked[1:] for name in PRELOADED[each.module] if name not in first)
    server = ForkServer(first, list(others), {**environment, **limits})
    try:
        yield server
    finally:
        server.close()


def _answer(line: socket.socket) -> dict[str, Any]:
    """Reads one answer of the server; {} if it has ended."""
    text = b""
    while not text.endswith(b"\n"):
        if not (data := line.recv(4096)):
            return {}
        text += data
    return dict(json.loads(text))
