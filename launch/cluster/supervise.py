"""Runs the commands of a plan, passes preemption on to them, restarts failed steps, and leaves no process behind."""

import contextlib
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from randcond.launch.cluster.commands import Step, with_free_port
from randcond.launch.cluster.forked import ForkedProcess, ForkServer, fork_server
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
from randcond.launch.runtime.processes import QUIET, RANKS_FROM, STOP_FILE, SUPERVISOR, prepare_child, thread_limits
from randcond.launch.runtime.this_command import this_command

Command = subprocess.Popen[bytes] | ForkedProcess


def run_steps(steps: list[Step], max_restarts: int = 0, grace: float = 120.0) -> None:
    """Runs the commands one after the other. Restarts a step that lost a rank or a host, at most `max_restarts` times.

    `grace`: seconds that a training has to save when it is preempted.
    Raises SystemExit with the exit code of a failed command, or with PREEMPTED if a preemption request came before the
    last command was done. Finished work is kept, and the same command continues from it.
    """
    check_hosts(steps)
    try:
        with _signals() as requests, fork_server(steps, _environment()) as forks:
            for number, step in enumerate(steps, 1):
                if requests:
                    log.info("\npreempted; run the same command to continue with the next step")
                    raise SystemExit(PREEMPTED)
                log.info(f"\n[{number}/{len(steps)}] {step.label}")
                _run_with_restarts(step, max_restarts, grace, requests, forks)
    except KeyboardInterrupt:  # between two commands
        _say_interrupted()
        raise SystemExit(INTERRUPTED) from None


def _say_interrupted() -> None:
    log.info(f"\ninterrupted; finished work is kept. To go on, run the same command: {this_command()}")


def check_hosts(steps: list[Step]) -> None:
    """Checks the hosts and tools of all steps before the first one starts. Raises UserError."""
    if any(step.environment_file for step in steps):
        check_tools()
        own_environment()
    if hosts := list(dict.fromkeys(host for step in steps for host in step.hosts)):
        wait_for_hosts(hosts, patience=0)


@contextlib.contextmanager
def _signals() -> Iterator[list[float]]:
    """Yields a list that gets the time of each SIGTERM and SIGUSR1 until the context ends. Ctrl-C raises an error.

    A shell that runs this command in the background has Ctrl-C ignored. It may still be sent on purpose.
    """
    requests: list[float] = []
    signals = (signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, lambda *_: requests.append(time.monotonic())) for number in signals}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, _raise_interrupt)
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _environment(elsewhere: bool = False) -> dict[str, str]:
    """Returns the environment of every command: without the ranks of a job around this one.

    elsewhere: the ranks are on other hosts.
    """
    environment = {**QUIET, **os.environ}
    forget_ranks(environment)
    environment.pop(RANKS_FROM, None)
    environment |= {SUPERVISOR: str(os.getpid()), "RANDCOND_HOST": platform.node()}
    if not elsewhere and not gpus_here():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def _run_with_restarts(
    step: Step, max_restarts: int, grace: float, requests: list[float], forks: ForkServer | None
) -> None:
    """Runs one step, and restarts it if it failed. Raises SystemExit if it still fails, or was preempted."""
    restarts = 0
    while True:
        try:
            wait_for_hosts(step.hosts, PATIENCE, lambda: bool(requests))
        except UserError as error:  # the hosts answered before the first step, so this is not the user's mistake
            log.error(f"error: {error}")
            code = LOST_RANK
            break
        code = PREEMPTED if requests else _run_step(step, grace, requests, forks)
        if code in (0, USER_ERROR, PREEMPTED, INTERRUPTED) or not step.distributed or restarts == max_restarts:
            break
        restarts += 1
        log.info(f"\n{step.label} ended with code {code}: restart {restarts} of {max_restarts}")
    if code == INTERRUPTED:
        raise SystemExit(code)
    if code and code != USER_ERROR:  # an error of the user says the way out itself
        started = step.folder and (step.folder / "logs").is_dir()
        logs = f" The ranks' logs are in {step.folder}/logs." if started else ""
        log.info(
            f"\n{step.label} ended with code {code}. Finished work is kept. Run the same command to continue.{logs}"
        )
    if code:
        raise SystemExit(code)


def _run_step(step: Step, grace: float, requests: list[float], forks: ForkServer | None) -> int:
    """Runs one step and returns its exit code. The code is not 0 if the step's artefact is missing."""
    write_files(step.files)
    code = _run_command(with_free_port(step) if step.needs_port else step, grace, requests, forks)
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


def _run_command(step: Step, grace: float, requests: list[float], forks: ForkServer | None) -> int:
    """Runs a step's command in its own session and returns its exit code. No process that it started outlives it.

    A preempted training may first save: it ends by itself when its stop file appears. Any other command that is
    preempted is killed at once. Both return PREEMPTED. Raises SystemExit if it has not saved after `grace` seconds.
    """
    environment = {**_environment(elsewhere=step.environment_file is not None), **step.environment}
    environment |= thread_limits(step.threads)  # torchrun would warn that it sets 1
    said = _folder_of_errors(step.environment_file)
    environment[SAID] = str(said)
    stop = step.folder / f".stop.{platform.node()}.{os.getpid()}" if step.folder else None
    if stop:
        environment[STOP_FILE] = str(stop.absolute())
        stop.unlink(missing_ok=True)  # left by a killed command whose container used the same process number
    if step.environment_file:
        _write_private(step.environment_file, environment_lines(environment))
        environment |= host_environment(step.environment_file)
    if {"--include", "--num_accelerators"} & set(step.command):  # the launcher would say that it ignores the variable
        environment.pop(VARIABLE, None)
    process: Command | None = None
    try:
        if forks and step.forked:
            process = forks.start(step.forked, environment)
        if process is None:
            process = subprocess.Popen(step.command, env=environment, start_new_session=True, preexec_fn=prepare_child)
        return _wait(process, requests, stop, grace)
    except KeyboardInterrupt:
        _say_interrupted()
        if process is not None and not step.environment_file:  # the ranks are on this machine
            from randcond.launch.cluster.interrupt import end_ranks  # imports psutil

            end_ranks(process)
        raise SystemExit(INTERRUPTED) from None
    finally:
        if process is not None:
            _end(process, step)
        remove(said)
        if step.environment_file:
            step.environment_file.unlink(missing_ok=True)
        if stop:
            stop.unlink(missing_ok=True)


def _end(process: Command, step: Step) -> None:
    """Ends what is left of a command."""
    if step.environment_file and isinstance(process, subprocess.Popen) and process.poll() is None:
        process.terminate()  # the launcher then ends its ranks on other hosts, which we can't
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
    _signal_group(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60)


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


def _wait(process: Command, requests: list[float], stop: Path | None, grace: float) -> int:
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
