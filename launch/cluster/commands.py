"""Builds the command line of each stage for this machine, the hosts of a host file, torchrun or Slurm.

In: stage, experiment, overrides, where to run. Out: steps in their order (argument lists, and the files they need).
"""

import os
import shlex
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from randcond.launch.cluster.fork_server import Request
from randcond.launch.cluster.place import Place
from randcond.launch.config.experiments import table_names, to_dict, to_yaml
from randcond.launch.config.gpus import nvidia_here
from randcond.launch.config.parsing import suggest, veiled
from randcond.launch.config.paths import eval_folder, is_url
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Run, leaves, out_folder, runs_of
from randcond.launch.errors import UserError
from randcond.launch.machine.visible_gpus import choose_gpus, count_gpus, gpus_here
from randcond.launch.urls import hide_secrets, show_url

STAGES = ("pool", "cache", "train", "eval", "report")
CHOICES = ("check", *STAGES, "all")  # what `randcond run` takes
_MODULES = {"pool": "randcond.data", "cache": "randcond.data", "train": "randcond.train", "eval": "randcond.eval"}
_DISTRIBUTED = {"cache", "train", "eval"}


@dataclass(frozen=True)
class Step:
    """One command of a plan, and the file that exists once its work is done."""

    label: str
    command: list[str]
    artefact: Path | None = None  # the file that the command writes last
    zero_means_done: bool = False  # exit code 0 proves success: torchrun. A killed deepspeed launcher ends with 0, too
    distributed: bool = False
    folder: Path | None = None  # a training's run folder: its stop file, which requests the end, is created there
    hosts: list[str] = field(default_factory=list)  # they must answer before the command starts
    files: dict[Path, str] = field(default_factory=dict)  # path -> text, written before the command starts
    environment_file: Path | None = None  # deepspeed launcher on several hosts: environment of the ranks
    needs_port: bool = False  # deepspeed launcher on this machine: gets a port that is free when it starts
    environment: dict[str, str] = field(default_factory=dict)  # secrets of URLs, which are not in the command
    forked: Request | None = None  # does what the command does, by a fork of a process that has imported the libraries
    threads: int | None = None  # CPU threads of each rank; None: the default of the machine


def launch_folder(config: Config) -> Path:
    """Returns the folder for the files that a run is launched with, such as its resolved configuration."""
    return Path(config.home) / "launch"


def _resolved(stage: str, config: Config) -> Path:
    """Returns the file for the resolved configuration of a stage."""
    return launch_folder(config) / f"{stage}.yaml"


def stage_step(stage: str, run: Run, place: Place) -> Step:
    """Returns the step that runs one stage of one run."""
    config = run.config
    module = _MODULES[stage]
    environment: dict[str, str] = {}
    arguments = [run.experiment, *(veiled(word, environment) for word in run.overrides)]
    files: dict[Path, str] = {}
    if place.hostfile or place.launcher == "slurm":
        # pdsh would split arguments at spaces, quotes and brackets. YAML files may change while a job is queued.
        resolved = _resolved(stage, config)
        files[resolved] = to_yaml(config)
        arguments = [str(resolved)]
    if module == "randcond.data":  # this package has two stages, so the command names one
        arguments.insert(0, stage)
    distributed = stage in _DISTRIBUTED
    several_hosts = distributed and bool(place.hostfile)
    by, launcher = _launcher(config, place) if distributed else ("", [])
    ranks = (place.gpus or config.engine.processes) if distributed else 1
    return Step(
        label=" ".join(filter(None, [stage, run.experiment, config.replicate])),
        command=[*(launcher or [sys.executable, "-m"]), module, *arguments],
        artefact=artefact(stage, config),
        distributed=distributed,
        folder=Path(config.paths.run) if stage == "train" else None,
        hosts=place.hosts if distributed else [],
        files=files,
        environment_file=launch_folder(config) / "environment" if several_hosts else None,
        zero_means_done=by == "torchrun",
        needs_port=by == "deepspeed" and not place.hostfile,
        environment=environment,
        forked=_forked(place, module, arguments, ranks),
        threads=config.engine.threads,
    )


def _forked(place: Place, module: str, words: list[str], ranks: int = 1) -> Request | None:
    """Returns the request to fork a stage, None where that is not possible: elsewhere, or on GPUs."""
    return Request(module, words, ranks) if place.may_fork and not place.hostfile and not on_gpus() else None


def _check_urls(config: Config, place: Place) -> None:
    """Raises UserError naming a key whose URL holds a secret that the ranks of this place would not get.

    Their configuration is a file, in which no secret may stand.
    """
    if not place.hostfile and place.launcher != "slurm":
        return
    for key, value in leaves(to_dict(config)).items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and show_url(each, keep_variables=True) != each:
                raise UserError(
                    f"{key}: {show_url(each)} has a user, a password or a query, which is not written into the "
                    f"configuration that other hosts read; put an environment variable in its place, such as "
                    f"https://host/file?${{NAME}} or https://${{USER}}:${{PASSWORD}}@host/file, and set it there"
                )


def _launcher(config: Config, place: Place) -> tuple[str, list[str]]:
    """Returns the launcher's name, and the part of the command before the module's name, which starts the ranks.

    Both are empty if one process is enough, or if srun starts the ranks. Launchers are started as modules: scripts in
    the environment's bin folder don't start from a path with spaces.
    """
    ranks = place.gpus or config.engine.processes
    if place.launcher == "slurm" or (ranks == 1 and not place.hostfile and place.launcher == "deepspeed"):
        return "", []
    gpus = choose_gpus(ranks, count_gpus()) if on_gpus() and not place.hostfile else []
    by_name, hidden = not all(name.isdigit() for name in gpus), nvidia_here() and not gpus_here()
    # The deepspeed launcher shows its ranks the GPUs 0, 1, ..., although others are chosen by name, or all are hidden.
    if place.launcher == "torchrun" or (not place.hostfile and (by_name or hidden)):
        hosts = ["--standalone"]
        if place.rdzv:
            hosts = [f"--nnodes={place.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={place.rdzv}"]
            hosts.append(f"--rdzv-id={config.name}")
        torchrun = [sys.executable, "-m", "randcond.launch.cluster.torchrun"]
        return "torchrun", [*torchrun, *hosts, f"--nproc-per-node={ranks}", "-m"]
    # critical: the launcher would repeat the ranks' errors
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical", "--no_local_rank"]
    if place.hostfile:
        words += ["--hostfile", place.hostfile, "--force_multi"]
        words += ["--num_nodes", str(place.nodes)] if place.nodes else []
        words += ["--num_gpus", str(place.gpus)] if place.gpus else []
        words += ["--master_addr", place.master_addr] if place.master_addr else []
        words += ["--master_port", str(place.master_port)] if place.master_port else []
    else:
        words += ["--hostfile", os.devnull]
        words += ["--include", f"localhost:{','.join(gpus)}"] if gpus else ["--num_accelerators", str(ranks)]
    return "deepspeed", [*words, "--module"]


def on_gpus() -> bool:
    """Returns True if ranks on this machine run on its NVIDIA GPUs."""
    return gpus_here() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"


def plan(stage: str, name: str, overrides: list[str], place: Place) -> list[Step]:
    """Returns the steps of a stage, of "check" or "all", for an experiment or a table.

    Pools and caches that runs share appear once.

    Raises UserError if the stage, the experiment or one of its keys is unknown.
    """
    if stage not in CHOICES:
        swapped = f"; the stage comes first: {name} {stage}" if name in CHOICES else ""
        raise UserError(f"unknown stage {stage!r}{swapped or suggest(stage, CHOICES)}")
    stages = STAGES[:-1] if stage == "all" else (stage,)
    steps: dict[tuple[str, Path], Step] = {}
    shared, own = [s for s in stages if s in ("pool", "cache")], [s for s in stages if s in ("train", "eval")]
    runs = runs_of(name, overrides)
    for run in runs:
        _check_urls(run.config, place)
    if stage == "cache" and any(is_url(run.config.paths.cache) for run in runs):
        raise UserError(
            "paths.cache: a cache at a URL is read-only; write the cache to a folder and copy that to the server"
        )
    order = [(s, run) for s in shared for run in runs] + [(s, run) for run in runs for s in own]
    for each, run in order:
        if each != "eval" and not run.config.trains:
            if stage == each and len(runs) == 1:
                raise UserError(f"{run.experiment}: only evaluates {run.config.teacher.path}; run stage eval")
            continue
        if each == "cache" and is_url(run.config.paths.cache):
            continue  # it already exists on a server
        step = stage_step(each, run, place)
        assert step.artefact is not None
        steps.setdefault((each, step.artefact), step)
    if stage in ("report", "all"):
        if name in table_names():
            reports = [_report(name, overrides, out_folder(name, runs), place)]
        else:
            reports = [
                _report(run.experiment, run.overrides, Path(run.config.home), place, run.config.replicate)
                for run in runs
            ]
        steps |= {("report", out): step for out, step in reports}
    checks = [_check(name, overrides, runs, place)] if stage in ("all", "check") and runs else []
    return [*checks, *steps.values()]


def check_before(stage: str, steps: list[Step], place: Place, name: str, overrides: list[str]) -> list[Step]:
    """Returns the step that checks a stage alone before its ranks start; [] if the stage is one process."""
    runs = [run for run in runs_of(name, overrides) if stage == "eval" or run.config.trains]
    ranks = [place.ranks(run.config.engine.processes) for run in runs]
    if stage not in _DISTRIBUTED or not steps or max(ranks) == 1:
        return []
    return [_check(name, overrides, runs, place, stage)]


def _report(name: str, overrides: list[str], out: Path, place: Place, replicate: str = "") -> tuple[Path, Step]:
    """Returns the report's folder, and the step that writes the report."""
    environment: dict[str, str] = {}
    words = [veiled(word, environment) for word in overrides]
    command = [sys.executable, "-m", "randcond.eval.report", name, *words]
    label = " ".join(filter(None, ["report", name, replicate]))
    forked = _forked(place, "randcond.eval.report", [name, *words])
    return out, Step(label, command, out / "report.json", environment=environment, forked=forked)


def _check(name: str, overrides: list[str], runs: list[Run], place: Place, stage: str = "") -> Step:
    """Returns the step that checks all runs of an experiment or a table before the first stage, or before `stage`."""
    environment: dict[str, str] = {}
    words = [f"--stage={stage}"] if stage else []
    words += ["--elsewhere"] if place.hostfile and not nvidia_here() else []  # started on a login node
    if stage and place.launcher == "slurm":  # YAML files may change while a job is queued
        words += [str(_resolved(stage, run.config)) for run in runs]
    else:
        words += [name, *(veiled(word, environment) for word in overrides)]
    if place.hostfile or place.nodes or place.gpus:
        words.append(f"--ranks={place.ranks(max(run.config.engine.processes for run in runs))}")
    forked = _forked(place, "randcond.train.dryrun", words)
    command = [sys.executable, "-m", "randcond.train.dryrun", *words]
    return Step("check", command, environment=environment, forked=forked)


def artefact(stage: str, config: Config) -> Path:
    """Returns the file that a stage writes last."""
    return {
        "pool": Path(config.paths.pool) / "manifest.json",
        "cache": Path(config.paths.cache) / "manifest.json",
        "train": Path(config.paths.run) / "train.json",
        "eval": eval_folder(config) / "scores.json",
    }[stage]


def show(step: Step) -> str:
    """Returns a step's command as text for a shell, without secrets of URLs."""
    return hide_secrets(shlex.join(step.command))


def with_free_port(step: Step) -> Step:
    """Returns a step whose ranks meet at a port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    at = step.command.index("--module")
    command = [*step.command[:at], "--master_port", str(port), *step.command[at:]]
    return replace(step, command=command, forked=replace(step.forked, port=port) if step.forked else None)
