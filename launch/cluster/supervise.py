"""Runs a plan's commands, leaves no process behind, passes on a scheduler's wish to end, starts again what broke."""

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from randcond.launch.cluster.commands import Step, with_free_port
from randcond.launch.cluster.hosts import (
    PATIENCE,
    check_tools,
    environment_lines,
    host_environment,
    own_environment,
    wait_for_hosts,
)
from randcond.launch.config.gpus import nvidia_here
from randcond.launch.errors import UserError
from randcond.launch.runtime.exit_codes import INTERRUPTED, LOST_RANK, PREEMPTED, USER_ERROR
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.processes import QUIET, STOP_FILE


def run_steps(steps: list[Step], max_restarts: int = 0, grace: float = 120.0) -> None:
    """Runs the commands one after the other; one that lost a rank or a host starts again, `max_restarts` times.

    `grace`: seconds that a training has to save once it has been asked to end.
    Raises SystemExit with the failed command's code, or PREEMPTED where it was asked to end before the last one was
    done: what is done stays done, and the same command goes on from it.
    """
    check_hosts(steps)
    with _wishes() as asked:
        for number, step in enumerate(steps, 1):
            if asked:
                log.info("\nasked to end; the same command goes on with the next step")
                raise SystemExit(PREEMPTED)
            log.info(f"\n[{number}/{len(steps)}] {step.label}")
            _run_until_done(step, max_restarts, grace, asked)


def check_hosts(steps: list[Step]) -> None:
    """What the hosts of any step would refuse, before the first begins; raises UserError."""
    if any(step.environment_file for step in steps):
        check_tools()
        own_environment()
    if hosts := list(dict.fromkeys(host for step in steps for host in step.hosts)):
        wait_for_hosts(hosts, patience=0)


@contextlib.contextmanager
def _wishes() -> Iterator[list[float]]:
    """When the end was asked for by SIGTERM or SIGUSR1, as long as the context lasts."""
    asked: list[float] = []
    wishes = (signal.SIGTERM, signal.SIGUSR1)
    handlers = {number: signal.signal(number, lambda *_: asked.append(time.monotonic())) for number in wishes}
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run_until_done(step: Step, max_restarts: int, grace: float, asked: list[float]) -> None:
    """Runs one step, again where a rank was lost; raises SystemExit when that does not help."""
    restarts = 0
    while True:
        try:
            wait_for_hosts(step.hosts, PATIENCE, lambda: bool(asked))
        except UserError as error:  # they were there when the plan began: no mistake of the command's
            log.error(f"error: {error}")
            code = LOST_RANK
            break
        code = PREEMPTED if asked else _run_step(step, grace, asked)
        if code in (0, USER_ERROR, PREEMPTED, INTERRUPTED) or not step.distributed or restarts == max_restarts:
            break
        restarts += 1
        log.info(f"\n{step.label} ended with code {code}: restart {restarts} of {max_restarts}")
    if code:
        once = "once the error above is mended, " if code == USER_ERROR else ""
        log.info(f"\n{step.label} ended with code {code}. What is done is kept; {once}the same command goes on.")
        raise SystemExit(code)


def _run_step(step: Step, grace: float, asked: list[float]) -> int:
    """Runs one step; a code other than 0 unless its artefact is there."""
    write_files(step.files)
    command = with_free_port(step.command) if step.alone else step.command
    stop = step.folder / f".stop.{platform.node()}.{os.getpid()}" if step.folder else None
    code = _run_command(command, stop, step.environment_file, grace, asked)
    if code == 0 and not step.trusted and step.artefact and not step.artefact.is_file():
        # The deepspeed launcher ends with 0 when its node process was killed by a signal.
        log.error(f"error: {step.label} ended without {step.artefact}: was it killed?")
        return 1
    return code


def write_files(files: dict[Path, str]) -> None:
    """Writes text files, and the folders they are in."""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _write_private(path: Path, text: str) -> None:
    """A file that its owner alone may read: the user's .deepspeed_env may hold keys."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _run_command(
    command: list[str], stop: Path | None, environment_file: Path | None, grace: float, asked: list[float]
) -> int:
    """Runs one command in a session of its own and returns its exit code; nothing it started outlives it.

    Asked to end (pre-emption), it does so with PREEMPTED: by itself where it looks out for the file `stop`, at once
    otherwise. Raises SystemExit when it has not saved after `grace` seconds.
    `environment_file`: what the deepspeed launcher gives to other hosts.
    """
    environment = {**QUIET, **os.environ, "RANDCOND_SUPERVISOR": str(os.getpid())}
    environment["RANDCOND_HOST"] = platform.node()
    if stop:
        environment[STOP_FILE] = str(stop.absolute())
        stop.unlink(missing_ok=True)  # of a killed command, in a container that had the same process number
    if environment_file:
        _write_private(environment_file, environment_lines(environment))
        environment |= host_environment(environment_file)
    elif not nvidia_here():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    if "--include" in command:  # CUDA_VISIBLE_DEVICES' GPUs: the launcher would say that it ignores that one
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_die_with_parent)
    interrupt = signal.signal(signal.SIGINT, _raise_interrupt)
    try:
        return _wait(process, asked, stop, grace)
    except KeyboardInterrupt:
        log.info("\ninterrupted: ending the processes")
        _signal_group(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        return INTERRUPTED
    finally:
        if environment_file and process.poll() is None:
            process.terminate()  # the deepspeed launcher then ends its ranks on the other hosts, which we can't
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        if environment_file:
            environment_file.unlink(missing_ok=True)
        if stop:
            stop.unlink(missing_ok=True)
        signal.signal(signal.SIGINT, interrupt)


def _wait(process: subprocess.Popen[bytes], asked: list[float], stop: Path | None, grace: float) -> int:
    """Until the command has ended, or has had its time to after it was asked to."""
    said = False
    while True:
        try:
            code = process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            code = None
        if not asked:
            if code is not None:
                return code
            continue
        if not said:
            said = True
            log.info("\nasked to end" + (": saving" if stop else ""))
            if stop:
                stop.parent.mkdir(parents=True, exist_ok=True)
                stop.touch()
        # Who was signalled with us (a whole container, say) may have left its ranks behind, saving.
        if code == 0 or (code is not None and not _group_lives(process.pid)):
            return code if code in (0, USER_ERROR) else PREEMPTED
        if not stop:
            return PREEMPTED
        if time.monotonic() - asked[0] > grace:
            log.error(f"error: not saved within {grace:g} s (--grace): it goes on from the checkpoint before")
            raise SystemExit(LOST_RANK)  # nothing starts again: the end was asked for
        if code is not None:
            time.sleep(0.5)


def _group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _raise_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
