"""What a stage's command line is, here or on the hosts of a host file, and how it is run and ended.

In: stage, experiment, overrides, where to run. Out: argument lists for the deepspeed launcher or plain Python.
"""

import ctypes
import os
import platform
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from randcond.launch.config import Config, eval_folder, load_arms, load_config, load_table, table_names

STAGES = ("pool", "cache", "train", "eval", "report")
_MODULES = {"pool": "randcond.data", "cache": "randcond.data", "train": "randcond.train", "eval": "randcond.eval"}
_DISTRIBUTED = {"cache", "train", "eval"}
_QUIET = {  # the libraries' start-up chatter; their errors still come through
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class Place:
    """Where a distributed stage runs; all unset: on this machine with `engine.processes` ranks."""

    hostfile: str | None = None
    nodes: int | None = None
    gpus: int | None = None  # ranks per host


@dataclass(frozen=True)
class Step:
    """One command of a run and the file that tells it has done its work."""

    label: str
    command: list[str]
    artefact: Path | None = None


def stage_command(stage: str, experiment: str, overrides: list[str], config: Config, place: Place) -> list[str]:
    """The argument list that runs one stage of one experiment."""
    module = _MODULES[stage]
    words = [experiment, *overrides]
    if module == "randcond.data":  # a package of two stages
        words.insert(0, stage)
    ranks = place.gpus or config.engine.processes
    if stage not in _DISTRIBUTED or (ranks == 1 and not place.hostfile):
        return [sys.executable, "-m", module, *words]
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--quiet", "--no_local_rank"]
    if place.hostfile:
        launcher += ["--hostfile", place.hostfile]
        launcher += ["--num_nodes", str(place.nodes)] if place.nodes else []
        launcher += ["--num_gpus", str(place.gpus)] if place.gpus else []
    else:
        launcher += ["--hostfile", os.devnull, "--num_accelerators", str(ranks), "--master_port", str(_free_port())]
    return [*launcher, "--module", module, *words]


def plan(stage: str, name: str, overrides: list[str], place: Place) -> list[Step]:
    """The commands of a stage (or "all") of an experiment or a table, shared pools and caches once.

    Raises ValueError when the stage, the experiment or one of its keys is unknown.
    """
    if stage not in (*STAGES, "all"):
        raise ValueError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}, all")
    experiments = list(load_table(name).arms.values()) if name in table_names() else [name]
    wanted = STAGES[:-1] if stage == "all" else (stage,)
    steps: dict[tuple[str, Path], Step] = {}
    shared, own = [s for s in wanted if s in ("pool", "cache")], [s for s in wanted if s in ("train", "eval")]
    configs = load_arms(name, overrides) if name in table_names() else {name: load_config(name, overrides)}
    check_place(place)
    order = [(s, e) for s in shared for e in experiments] + [(s, e) for e in experiments for s in own]
    for each, experiment in order:
        config = configs[experiment]
        artefact = _artefact(each, config)
        command = stage_command(each, experiment, overrides, config, place)
        steps.setdefault((each, artefact), Step(f"{each} {experiment}", command, artefact))
    if stage in ("report", "all"):
        command = [sys.executable, "-m", "randcond.eval.report", name, *overrides]
        out = Path(load_table(name).report if name in table_names() else configs[name].paths.run)
        steps["report", out] = Step(f"report {name}", command, out / "report.json")
    checks = [_check(experiments, overrides, place)] if stage == "all" else []
    return [*checks, *steps.values()]


def _check(experiments: list[str], overrides: list[str], place: Place) -> Step:
    """What any of the stages would refuse, before the first of them starts."""
    ranks = [f"engine.processes={place.gpus}"] if place.gpus and not place.hostfile else []
    words = [*experiments, *overrides, *ranks]
    return Step("check", [sys.executable, "-m", "randcond.train.dryrun", *words])


def check_place(place: Place) -> None:
    """Refuses a place that the launcher would silently take for this machine."""
    if place.hostfile and not Path(place.hostfile).is_file():
        raise ValueError(f"--hostfile: no such file: {place.hostfile}")
    if place.nodes is not None and not place.hostfile:
        raise ValueError("--nodes needs a --hostfile")
    if 0 in (place.nodes, place.gpus):
        raise ValueError("--nodes and --gpus must be at least 1")


def _artefact(stage: str, config: Config) -> Path:
    """The file a stage writes last."""
    return {
        "pool": Path(config.paths.pool) / "manifest.json",
        "cache": Path(config.paths.cache) / "manifest.json",
        "train": Path(config.paths.run) / "train.json",
        "eval": eval_folder(config) / "scores.json",
    }[stage]


def run_steps(steps: list[Step]) -> None:
    """Runs the commands one after the other.

    Raises SystemExit with the failed command's code: what is done stays done, and the same command goes on from it.
    """
    for number, step in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {step.label}", flush=True)
        code = run_command(step.command)
        if code == 0 and step.artefact and not step.artefact.is_file():
            # The deepspeed launcher ends with 0 when its node process was killed by a signal.
            print(f"error: {step.label} ended without {step.artefact}: was it killed?", file=sys.stderr)
            code = 1
        if code:
            print(f"\n{step.label} ended with code {code}. What is done is kept; the same command goes on from it.")
            raise SystemExit(code)


def run_command(command: list[str]) -> int:
    """Runs one command in a session of its own and returns its exit code; nothing it started outlives it."""
    environment = {**_QUIET, **os.environ, "RANDCOND_SUPERVISOR": str(os.getpid())}
    environment["RANDCOND_HOST"] = platform.node()
    if not Path("/dev/nvidiactl").exists():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_die_with_parent)
    handlers = {number: signal.signal(number, _raise_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("\ninterrupted: ending the processes", flush=True)
        _signal_group(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            pass
        return 130
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)


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


def show(command: list[str]) -> str:
    """A command as one would type it."""
    return shlex.join(command)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
