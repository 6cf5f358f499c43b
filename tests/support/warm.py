"""Runs test commands in processes forked from a server that has already imported torch and the stages.

Importing torch, diffusers and DeepSpeed takes most of a small stage's time. A forked process runs the same entry point
(`python -m MODULE`) with its own arguments, environment, folder and output. Each pytest process has its own server.

`python -m tests.support.warm SOCKET` starts a server.
"""

import atexit
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support.patience import HANG

MODULES = (  # what stages import; forked processes need not import it again
    "tensorboard",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "torch.utils.hipify.hipify_python",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "diffusers",
    "transformers",
    "randcond.launch.cli",
    "randcond.data.captions.pool",
    "randcond.data.cache.caching",
    "randcond.train.loop",
    "randcond.train.dryrun",
    "randcond.train.engine.zero",
    "randcond.train.engine.fsdp",
    "randcond.eval.stage",
    "randcond.eval.report.report",
    "randcond.eval.report.report_command",
)
ENVIRONMENT = {  # libraries read these on import, so all forked processes have the same values
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


@dataclass
class Command:
    """A command that runs in a forked process."""

    module: str
    words: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)


def run(commands: Sequence[Command], timeout: float = HANG) -> list[subprocess.CompletedProcess[str]]:
    """Runs commands at the same time and waits for all of them.

    If a command takes more than `timeout` seconds, kills it and those after it, and raises TimeoutExpired.
    """
    running = [_begin(each) for each in commands]
    done = []
    try:
        while running:
            done.append(_finished(*running[0], deadline=time.monotonic() + timeout))
            running.pop(0)
    finally:
        for _, _, pid, _ in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return done


Begun = tuple[Command, socket.socket, int, list[Path]]


def _begin(command: Command) -> Begun:
    outputs = [Path(tempfile.mkstemp(prefix="randcond-out-")[1]) for _ in range(2)]
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(_server()))
    files = [path.open("wb") for path in outputs]
    request = {
        "module": command.module,
        "words": command.words,
        "folder": str(command.folder),
        "environment": {**os.environ, **ENVIRONMENT, **command.environment},
    }
    data = json.dumps(request).encode()
    socket.send_fds(line, [len(data).to_bytes(8, "big")], [file.fileno() for file in files])
    line.sendall(data)
    for file in files:
        file.close()
    pid = _number(line)
    return command, line, pid, outputs


def _number(line: socket.socket) -> int:
    """Reads a number that the server sent: a process's, or an exit code."""
    data = line.recv(8)
    assert len(data) == 8, "the warm server is gone"
    return int.from_bytes(data, "big", signed=True)


def _finished(
    command: Command, line: socket.socket, _: int, outputs: list[Path], deadline: float
) -> subprocess.CompletedProcess[str]:
    words = ["python", "-m", command.module, *command.words]
    line.settimeout(max(0.1, deadline - time.monotonic()))
    try:
        code = _number(line)
    except TimeoutError:
        raise subprocess.TimeoutExpired(words, deadline) from None
    finally:
        line.close()
    texts = [path.read_text(errors="replace") for path in outputs]
    for path in outputs:
        path.unlink()
    return subprocess.CompletedProcess(words, code, *texts)


@cache
def _server() -> Path:
    """Returns the socket of this process's server. The first call starts the server."""
    path = Path(tempfile.mkdtemp(prefix="randcond-warm-")) / "socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm", str(path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,  # closed whenever this process ends, which also ends the server
    )
    atexit.register(process.kill)
    while not path.exists():
        assert process.poll() is None, "the warm server ended while it started"
        time.sleep(0.05)
    return path


def serve(path: Path) -> None:
    """Imports what stages need, then forks a process for each connection until standard input is closed."""
    for module in MODULES:
        __import__(module)
    _measure_networks()
    waiting = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path.with_suffix(".new")))
    listener.listen(64)
    path.with_suffix(".new").rename(path)
    waiting.register(listener, selectors.EVENT_READ, "new")
    waiting.register(sys.stdin.fileno(), selectors.EVENT_READ, "parent")
    while True:
        for key, _ in waiting.select():
            if key.data == "parent":
                return
            if key.data == "new":
                line, _ = listener.accept()
                pid = _fork(line, listener)
                line.sendall(pid.to_bytes(8, "big"))
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, line))
            else:
                pid, line = key.data
                waiting.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(status)
                try:
                    line.sendall(code.to_bytes(8, "big", signed=True))
                except OSError:
                    pass  # the client is gone
                line.close()


def _measure_networks() -> None:
    """Measures the demo's networks on the meta device, so that forked processes need not do it again."""
    import torch
    from diffusers import UNet2DConditionModel

    from randcond.launch.config.experiments import load_config
    from randcond.launch.config.paths import resolve_path
    from randcond.model_zoo.cost.flops import unet_cost
    from randcond.model_zoo.kernels.attention import attention_shapes
    from randcond.model_zoo.networks import unet_of
    from randcond.model_zoo.students.registry import find_rule, student_config
    from randcond.train.checks import check_training

    config = load_config("demo-with", [])
    check_training(config, 1)
    teacher, rule = unet_of(resolve_path(config.teacher.path)), find_rule(config.student.rule)
    for model, of in ((UNet2DConditionModel, teacher), (rule.model, student_config(config.student.rule, teacher))):
        unet_cost(model, of)
        with torch.device("meta"):
            attention_shapes(model.from_config(of), tokens=77)


def _fork(line: socket.socket, listener: socket.socket) -> int:
    """Forks the process that a connection asks for; returns its process id."""
    head, files, _, _ = socket.recv_fds(line, 8, 2)
    size, data = int.from_bytes(head, "big"), b""
    while len(data) < size:
        data += line.recv(size - len(data))
    request = json.loads(data)
    if pid := os.fork():
        for file in files:
            os.close(file)
        return pid
    code = 1
    try:
        os.setsid()
        listener.close()
        line.close()
        empty = os.open(os.devnull, os.O_RDONLY)
        for target, file in enumerate((empty, *files)):
            os.dup2(file, target)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = [request["module"], *request["words"]]
        warnings.filterwarnings("ignore", message=".* found in sys.modules after import of package")
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
