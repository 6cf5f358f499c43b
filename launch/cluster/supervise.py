"""Runs the commands of a plan, passes preemption on to them, restarts failed steps, and leaves no process behind."""

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
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
from randcond.launch.errors import UserError
from randcond.launch.machine.launcher_ranks import forget_ranks
from randcond.launch.machine.visible_gpus import VARIABLE, gpus_here
from randcond.launch.runtime.exit_codes import INTERRUPTED, LOST_RANK, PREEMPTED, USER_ERROR
from randcond.launch.runtime.files import remove
from randcond.launch.runtime.logs import SAID, log
from randcond.launch.runtime.processes import QUIET, RANKS_FROM, STOP_FILE, SUPERVISOR
from randcond.launch.runtime.this_command import this_command


def run_steps(steps: list[Step], max_restarts: int = 0, grace: float = 120.0) -> None:
    """Runs the commands one after the other. Restarts a step that lost a rank or a host, at most `max_restarts` times.

    `grace`: seconds that a training has to save when it is preempted.
    Raises SystemExit with the exit code of a failed command, or with PREEMPTED if a preemption request came before the
    last command was done. Finished work is kept, and the same command continues from it.
    """
    check_hosts(steps)
    with _preemption_requests() as requests:
        for number, step in enumerate(steps, 1):
            if requests:
                log.info("\npreempted; run the same command to continue with the next step")
                raise SystemExit(PREEMPTED)
            log.info(f"\n[{number}/{len(steps)}] {step.label}")
            _run_with_restarts(step, max_restarts, grace, requests)


def check_hosts(steps: list[Step]) -> None:
    """Checks the hosts and tools of all steps before the first one starts. Raises UserError."""
    if any(step.environment_file for step in steps):
        check_tools()
        own_environment()
    if hosts := list(dict.fromkeys(host for step in steps for host in step.hosts)):
        wait_for_hosts(hosts, patience=0)


@contextlib.contextmanager
def _preemption_requests() -> Iterator[list[float]]:
    """Yields a list that gets the time of each SIGTERM and SIGUSR1 until the context ends."""
    requests: list[float] = []
    signals = (signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, lambda *_: requests.append(time.monotonic())) for number in signals}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_with_restarts(step: Step, max_restarts: int, grace: float, requests: list[float]) -> None:
    """Runs one step, and restarts it if it failed. Raises SystemExit if it still fails, or was preempted."""
    restarts = 0
    while True:
        try:
            wait_for_hosts(step.hosts, PATIENCE, lambda: bool(requests))
        except UserError as error:  # the hosts answered before the first step, so this is not the user's mistake
            log.error(f"error: {error}")
            code = LOST_RANK
            break
        code = PREEMPTED if requests else _run_step(step, grace, requests)
        if code in (0, USER_ERROR, PREEMPTED, INTERRUPTED) or not step.distributed or restarts == max_restarts:
            break
        restarts += 1
        log.info(f"\n{step.label} ended with code {code}: restart {restarts} of {max_restarts}")
    if code == INTERRUPTED:
        raise SystemExit(code)
    if code and code != USER_ERROR:  # an error of the user says the way out itself
        logs = f" The ranks' logs are in {step.folder}/logs." if step.folder else ""
        log.info(
            f"\n{step.label} ended with code {code}. Finished work is kept. Run the same command to continue.{logs}"
        )
    if code:
        raise SystemExit(code)


def _run_step(step: Step, grace: float, requests: list[float]) -> int:
    """Runs one step and returns its exit code. The code is not 0 if the step's artefact is missing."""
    write_files(step.files)
    command = with_free_port(step.command) if step.needs_port else step.command
    stop = step.folder / f".stop.{platform.node()}.{os.getpid()}" if step.folder else None
    code = _run_command(command, stop, step.environment_file, grace, requests, step.environment)
    if code == 0 and not step.zero_means_done and step.artefact and not step.artefact.is_file():
        # The deepspeed launcher ends with 0 if a signal killed its process on a host.
        log.error(f"error: {step.label} ended with code 0, but {step.artefact} is missing: was a process killed?")
        return 1
    return code


def write_files(files: dict[Path, str]) -> None:
    """Writes text files, and creates their folders."""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read: the user's .deepspeed_env may hold keys."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _run_command(
    command: list[str],
    stop: Path | None,
    environment_file: Path | None,
    grace: float,
    requests: list[float],
    own: Mapping[str, str],
) -> int:
    """Runs one command in its own session and returns its exit code. No process that it started outlives it.

    A preempted command returns PREEMPTED. With `stop`, the command may first save: it ends by itself when the file
    `stop` appears. Without, it is killed at once. Raises SystemExit if it has not saved after `grace` seconds.

    `environment_file`: where the deepspeed launcher reads the environment for the ranks on other hosts.
    `own`: environment variables of this command.
    """
    environment = {**QUIET, **os.environ}
    forget_ranks(environment)  # of a job around this command
    environment.pop(RANKS_FROM, None)
    environment |= {**own, SUPERVISOR: str(os.getpid()), "RANDCOND_HOST": platform.node()}
    said = _folder_of_errors(environment_file)
    environment[SAID] = str(said)
    if stop:
        environment[STOP_FILE] = str(stop.absolute())
        stop.unlink(missing_ok=True)  # left by a killed command whose container used the same process number
    if environment_file:
        _write_private(environment_file, environment_lines(environment))
        environment |= host_environment(environment_file)
    elif not gpus_here():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    if {"--include", "--num_accelerators"} & set(command):  # the launcher would say that it ignores the variable
        environment.pop(VARIABLE, None)
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_prepare_child)
    previous = signal.signal(signal.SIGINT, _raise_interrupt)
    try:
        return _wait(process, requests, stop, grace)
    except KeyboardInterrupt:
        log.info(f"\ninterrupted; finished work is kept. To go on, run the same command: {this_command()}")
        if not environment_file:  # the ranks are on this machine
            from randcond.launch.cluster.interrupt import end_ranks  # imports psutil

            end_ranks(process)
        return INTERRUPTED
    finally:
        if environment_file and process.poll() is None:
            process.terminate()  # the launcher then ends its ranks on other hosts, which we can't
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        remove(said)
        if environment_file:
            environment_file.unlink(missing_ok=True)
        if stop:
            stop.unlink(missing_ok=True)
        signal.signal(signal.SIGINT, previous)


def _folder_of_errors(environment_file: Path | None) -> Path:
    """Returns a new folder in which ranks note the errors that they have shown, so that each is shown once.

    On several hosts it is beside `environment_file`, which all hosts see.
    """
    if not environment_file:
        return Path(tempfile.mkdtemp(prefix="randcond-errors-"))
    folder = environment_file.absolute().parent / f".errors.{platform.node()}.{os.getpid()}"
    remove(folder)
    folder.mkdir(parents=True)
    return folder


def _wait(process: subprocess.Popen[bytes], requests: list[float], stop: Path | None, grace: float) -> int:
    """Waits until the command has ended and returns its exit code.

    After a preemption request, returns PREEMPTED: at once without `stop`, otherwise when the command has saved.
    Raises SystemExit if it has not saved after `grace` seconds.
    """
    logged = False
    while True:
        try:
            code = process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            code = None
        if not requests:
            if code is not None:
                return code
            continue
        if not logged:
            logged = True
            log.info("\npreempted" + (": saving" if stop else ""))
            if stop:
                stop.parent.mkdir(parents=True, exist_ok=True)
                stop.touch()
        # If the signal went to a whole container, the launcher may have ended while its ranks still save.
        if code == 0 or (code is not None and not _group_lives(process.pid)):
            return code if code in (0, USER_ERROR) else PREEMPTED
        if not stop:
            return PREEMPTED
        if time.monotonic() - requests[0] > grace:
            log.error(f"error: not saved within {grace:g} s (--grace): it will resume from the previous checkpoint")
            raise SystemExit(LOST_RANK)  # no restart after a preemption request
        if code is not None:
            time.sleep(0.5)


def _group_lives(pid: int) -> bool:
    """Returns True if a process group has a process."""
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
    """Sends a signal to a process group, if it still exists."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _prepare_child() -> None:
    """Makes the kernel kill this process when its parent dies. Ctrl-C is ignored until the stage can handle it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
