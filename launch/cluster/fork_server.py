"""Forks a plan's stages from one process that has imported their libraries, so that each stage need not.

`python -m randcond.launch.cluster.fork_server SOCKET FIRST OTHERS` is this process; FIRST and OTHERS are names of
modules, separated by commas. It is for CPUs: a GPU's driver does not survive a fork. It reads one request per line from
SOCKET, a descriptor that it inherits, and answers with the process id and at last the exit code. It ends when the other
end of SOCKET is closed.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shlex
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from randcond.launch.runtime.processes import prepare_child

NOTICED = 1.0  # seconds until the other ranks are ended after one has failed: they name the lost rank meanwhile
PATIENCE = 30.0  # seconds that they have to end


@dataclass(frozen=True)
class Request:
    """One stage: a module that is run as `python -m MODULE WORDS`, by one process or by several ranks."""

    module: str
    words: list[str]
    ranks: int = 1
    environment: dict[str, str | None] = field(default_factory=dict)  # what differs from this process's; None: unset
    port: int = 0  # where the ranks meet

    def line(self) -> bytes:
        """The request as it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"


def serve(line: socket.socket, first: list[str], others: list[str]) -> None:
    """Forks a stage for each request until there are no more.

    first: what the first stage imports; it is imported before the fork. others: what the other stages import. This
    happens while the first one runs, because this process then has nothing else to do.
    """
    _preemption(signal.SIG_IGN)  # it is for the stages
    for message in (".*use of fork", ".* found in sys.modules after import of package"):
        warnings.filterwarnings("ignore", message=message)
    requests, left = line.makefile("rb"), list(reversed(others))
    if not all(map(_imported, first)):
        return  # the stage is started without this process, and says what is missing
    while text := requests.readline():
        request = Request(**json.loads(text))
        gc.freeze()  # the collector would otherwise touch, and so copy, all memory that the forks share
        pid, status = os.fork(), 0
        if not pid:
            os.close(line.detach())  # only this process answers
            _lead(request)
        _send(line, {"pid": pid})
        ended = 0
        while left and not ended:
            _imported(left.pop())  # if it is missing, the stage that needs it says so
            ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            _, status = os.waitpid(pid, 0)
        _send(line, {"code": os.waitstatus_to_exitcode(status)})
        while left:
            _imported(left.pop())


def _imported(module: str) -> bool:
    """Imports a module. Returns False if it, or something that it needs, is missing."""
    try:
        with _quiet():
            importlib.import_module(module)
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what libraries print on import. Their output goes past Python, too."""
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    try:
        yield
    finally:
        for number, file in zip((1, 2), kept, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.close(nowhere)


def _send(line: socket.socket, answer: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # the command is gone, and so will this process be
        line.sendall(json.dumps(answer).encode() + b"\n")


def _lead(request: Request) -> None:
    """Runs a stage in this forked process, or in ranks that it forks and watches. Does not return."""
    os.setsid()
    prepare_child()
    _preemption(signal.SIG_DFL)
    for name, value in request.environment.items():  # what the libraries have set on import stays
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if request.ranks == 1:
        _run(request)
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(request.port),
        "WORLD_SIZE": str(request.ranks),
        "LOCAL_SIZE": str(request.ranks),
    }
    os.environ.update(meeting)
    ranks = set()
    _preemption(signal.SIG_IGN)  # the ranks get it, too; this process reports how they end
    for rank in range(request.ranks):
        pid = os.fork()
        if not pid:
            prepare_child()
            _preemption(signal.SIG_DFL)
            os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
            _run(request)
        ranks.add(pid)
    os._exit(_watch(ranks))


def _preemption(handler: signal.Handlers) -> None:
    """Ignores the signals that ask a training to end, or takes them again."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, handler)


def _watch(living: set[int]) -> int:
    """Waits for the ranks. If one fails, ends the others. Returns the exit code of the first that failed, or 0."""
    while living:
        pid, status = os.wait()
        living.discard(pid)
        if code := os.waitstatus_to_exitcode(status):
            _end(living)
            return code if code > 0 else 128 - code
    return 0


def _end(ranks: set[int]) -> None:
    """Ends the other ranks: with SIGTERM, after a while with SIGKILL."""
    deadline = time.monotonic() + NOTICED
    signals = [(deadline, signal.SIGTERM), (deadline + PATIENCE, signal.SIGKILL)]
    while ranks:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        ranks.discard(pid)
        if signals and time.monotonic() > signals[0][0]:
            _, number = signals.pop(0)
            for rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank, number)
        time.sleep(0.02)


def _run(request: Request) -> None:
    """Runs the module in this process as `python -m` would, and ends it."""
    from setproctitle import setproctitle

    code = 1
    try:
        sys.argv = [request.module, *request.words]
        setproctitle(shlex.join([sys.executable, "-m", *sys.argv]))  # for ps, and whoever looks for the ranks
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    names = [[name for name in each.split(",") if name] for each in sys.argv[2:]]
    serve(socket.socket(fileno=int(sys.argv[1])), *names)
