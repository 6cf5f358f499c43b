"""Runs test commands in processes forked from a server that has already imported torch and the stages.

Importing torch, diffusers and DeepSpeed takes most of a small stage's time. A forked process runs the same entry point
(`python -m MODULE`) with its own arguments, environment, folder and output. The processes of a test run share a server.

`python -m tests.support.warm SOCKET OWNER` starts a server, which ends with the process OWNER.
"""

import json
import os
import runpy
import selectors
import shutil
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

from filelock import FileLock

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


class Process:
    """A command that runs in a forked process. It has the methods of `subprocess.Popen` that the tests need."""

    def __init__(self, command: Command) -> None:
        flags = [] if command.module == "-c" else ["-m"]
        self.args = ["python", *flags, command.module, *command.words]
        self.returncode: int | None = None
        # Files without a name: a test that never reads its output leaves nothing behind.
        self._outputs = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (open as long as the process)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(str(_socket_of_server()))
        request = {
            "module": command.module,
            "words": command.words,
            "folder": str(command.folder),
            "environment": {**os.environ, **ENVIRONMENT, **command.environment},
        }
        data = json.dumps(request).encode()
        numbers = [file.fileno() for file in self._outputs]
        socket.send_fds(self._server, [len(data).to_bytes(8, "big")], numbers)
        self._server.sendall(data)
        self.pid = self._number(HANG)

    def _number(self, timeout: float) -> int:
        """Reads a number that the server sends: first the process id, then the exit code."""
        self._server.settimeout(timeout)
        data = self._server.recv(8)
        assert len(data) == 8, "the warm server is gone"
        return int.from_bytes(data, "big", signed=True)

    def poll(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        with suppress(BlockingIOError):
            return self._end(timeout=0)
        return None

    def wait(self, timeout: float = HANG) -> int:
        """Waits for the end and returns the exit code. Raises TimeoutExpired."""
        try:
            return self._end(timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(self.args, timeout) from None

    def _end(self, timeout: float) -> int:
        if self.returncode is None:
            self.returncode = self._number(timeout)
            self._server.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the process, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = HANG) -> tuple[str, str]:
        """Waits for the end. Returns the standard output and the standard error."""
        self.wait(timeout)
        return self.output()

    def output(self) -> tuple[str, str]:
        """Returns the standard output and the standard error so far."""
        first, second = (
            os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
            for file in self._outputs
        )
        return first, second


def run(commands: Sequence[Command], timeout: float = HANG) -> list[subprocess.CompletedProcess[str]]:
    """Runs commands at the same time and waits for all of them.

    If they take more than `timeout` seconds, kills those that still run, and raises TimeoutExpired.
    """
    deadline = time.monotonic() + timeout
    processes = [Process(each) for each in commands]
    try:
        outputs = [process.communicate(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.wait(), *texts)
        for process, texts in zip(processes, outputs, strict=True)
    ]


def run_code(code: str, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python -c CODE WORDS`."""
    return run([Command("-c", [code, *words], folder or Path.cwd())])[0]


@cache
def _socket_of_server() -> Path:
    """Returns the socket of the test run's server. The first call of all processes starts the server."""
    test_run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if test_run else os.getpid()
    path = Path(tempfile.gettempdir()) / f"randcond-warm-{test_run or owner}" / "socket"
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_name("lock")):
        if not path.exists():
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(path), str(owner)],
                cwd=Path(__file__).parents[2],
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            while not path.exists():
                assert process.poll() is None, "the warm server ended while it started"
                time.sleep(0.05)
    return path


def serve(path: Path, owner: int) -> None:
    """Imports what stages need, then forks a process for each connection until the process `owner` ends."""
    for module in MODULES:
        __import__(module)
    _measure_networks()
    _read_handwriting()
    waiting = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path.with_suffix(".new")))
    listener.listen(64)
    path.with_suffix(".new").rename(path)
    waiting.register(listener, selectors.EVENT_READ, "new")
    waiting.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
    while True:
        for key, _ in waiting.select():
            if key.data == "owner":
                shutil.rmtree(path.parent, ignore_errors=True)
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
    from randcond.launch.config.experiments import load_config
    from randcond.launch.config.paths import resolve_path
    from randcond.launch.device.forecast import forecast_all
    from randcond.model_zoo.cost.flops import denoiser_cost
    from randcond.model_zoo.kernels.attention import attention_shapes
    from randcond.model_zoo.networks import denoiser_of
    from randcond.model_zoo.students.registry import student_of
    from randcond.train.checks import check_training

    config = load_config("demo-with", [])
    check_training(config, 1)
    forecast_all([config], 1)  # its costs decide the micro-batch of every training
    teacher = denoiser_of(resolve_path(config.teacher.path))
    for denoiser in (teacher, student_of(config.student.rule, teacher).denoiser):
        denoiser_cost(denoiser)
        attention_shapes(denoiser.blank())


def _read_handwriting() -> None:
    """Scores images of the tiny demo's captions, so that forked processes have the features of the handwriting."""
    import torch

    from randcond.data.digits.judge import FEATURE_WIDTH
    from randcond.eval.images.prompts import choose_prompts
    from randcond.eval.scores.digits_scores import score_digits
    from randcond.launch.config.experiments import load_config
    from tests.support.demo import TINY

    prompts = choose_prompts(load_config("demo-with", TINY))
    for numbers in prompts.splits.values():
        captions = [prompts.captions[number] for number in numbers]
        count = len(captions)
        score_digits(captions, torch.zeros(count, 3, dtype=torch.long), torch.rand(count, FEATURE_WIDTH))


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
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
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
        if request["module"] == "-c":
            del sys.argv[1]
            exec(compile(request["words"][0], "<string>", "exec"), {"__name__": "__main__"})
        else:
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
    serve(Path(sys.argv[1]), int(sys.argv[2]))
