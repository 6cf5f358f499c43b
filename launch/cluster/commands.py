"""What a stage's command line is: on this machine, on the hosts of a host file, under torchrun or Slurm.

In: stage, experiment, overrides, where to run. Out: steps (argument lists, and the files they need) in their order.
"""

import os
import shlex
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from randcond.launch.cluster.place import Place
from randcond.launch.config.experiments import table_names, to_yaml
from randcond.launch.config.gpus import nvidia_here
from randcond.launch.config.paths import eval_folder, is_url
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Run, out_folder, runs_of
from randcond.launch.errors import UserError

STAGES = ("pool", "cache", "train", "eval", "report")
_MODULES = {"pool": "randcond.data", "cache": "randcond.data", "train": "randcond.train", "eval": "randcond.eval"}
_DISTRIBUTED = {"cache", "train", "eval"}


@dataclass(frozen=True)
class Step:
    """One command of a run and the file that tells it has done its work."""

    label: str
    command: list[str]
    artefact: Path | None = None
    trusted: bool = False  # ends with 0 only when all is done: torchrun; the deepspeed launcher does when it is killed
    distributed: bool = False
    folder: Path | None = None  # of a training: where it looks out for the wish to end
    hosts: list[str] = field(default_factory=list)  # that must answer before it starts
    files: dict[Path, str] = field(default_factory=dict)  # written before it starts
    environment_file: Path | None = None  # for the deepspeed launcher on several hosts
    alone: bool = False  # by the deepspeed launcher on this machine, at a port that is free when it starts


def launch_folder(config: Config) -> Path:
    """Where what a run was launched with is kept."""
    return Path(config.home) / "launch"


def stage_step(stage: str, run: Run, place: Place) -> Step:
    """One stage of one run, as a step."""
    config = run.config
    module = _MODULES[stage]
    words = [run.experiment, *run.overrides]
    files: dict[Path, str] = {}
    if place.hostfile or place.launcher == "slurm":
        # pdsh would take arguments apart at spaces, quotes and brackets; a job may wait while YAML files change.
        resolved = launch_folder(config) / f"{stage}.yaml"
        files[resolved] = to_yaml(config)
        words = [str(resolved)]
    if module == "randcond.data":  # a package of two stages
        words.insert(0, stage)
    distributed = stage in _DISTRIBUTED
    several_hosts = distributed and bool(place.hostfile)
    launcher = _launcher(config, place) if distributed else []
    return Step(
        label=" ".join(filter(None, [stage, run.experiment, config.replicate])),
        command=[*(launcher or [sys.executable, "-m"]), module, *words],
        artefact=_artefact(stage, config),
        distributed=distributed,
        folder=Path(config.paths.run) if stage == "train" else None,
        hosts=place.hosts if distributed else [],
        files=files,
        environment_file=launch_folder(config) / "environment" if several_hosts else None,
        trusted=bool(launcher) and place.launcher == "torchrun",
        alone=bool(launcher) and place.launcher == "deepspeed" and not place.hostfile,
    )


def _launcher(config: Config, place: Place) -> list[str]:
    """The words before the module's name that start its ranks; none where one process is enough, or srun does it."""
    ranks = place.gpus or config.engine.processes
    tools = Path(sys.executable).parent
    if place.launcher == "torchrun":
        hosts = ["--standalone"]
        if place.rdzv:
            hosts = [f"--nnodes={place.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={place.rdzv}"]
            hosts.append(f"--rdzv-id={config.name}")
        return [str(tools / "torchrun"), *hosts, f"--nproc-per-node={ranks}", "-m"]
    if place.launcher == "slurm" or (ranks == 1 and not place.hostfile):
        return []
    words = [str(tools / "deepspeed"), "--quiet", "--no_local_rank"]
    if place.hostfile:
        words += ["--hostfile", place.hostfile, "--force_multi"]
        words += ["--num_nodes", str(place.nodes)] if place.nodes else []
        words += ["--num_gpus", str(place.gpus)] if place.gpus else []
        words += ["--master_addr", place.master_addr] if place.master_addr else []
        words += ["--master_port", str(place.master_port)] if place.master_port else []
    else:
        words += ["--hostfile", os.devnull, *_accelerators(ranks)]
    return [*words, "--module"]


def on_gpus() -> bool:
    """Whether ranks on this machine run on its NVIDIA GPUs."""
    return nvidia_here() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"


def _accelerators(ranks: int) -> list[str]:
    """How many, or which where CUDA_VISIBLE_DEVICES says it: told a number, the launcher takes GPU 0 and on."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not visible or not on_gpus():
        return ["--num_accelerators", str(ranks)]
    if not all(name.isdigit() for name in visible):
        raise UserError(f"CUDA_VISIBLE_DEVICES: the deepspeed launcher takes indices (4,5), got {','.join(visible)}")
    if len(visible) < ranks:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={','.join(visible)} names {len(visible)} GPUs, {ranks} ranks are asked for"
        )
    return ["--include", f"localhost:{','.join(visible[:ranks])}"]


def plan(stage: str, name: str, overrides: list[str], place: Place) -> list[Step]:
    """The commands of a stage (or "all") of an experiment or a table, shared pools and caches once.

    Raises UserError when the stage, the experiment or one of its keys is unknown.
    """
    if stage not in (*STAGES, "all"):
        raise UserError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}, all")
    wanted = STAGES[:-1] if stage == "all" else (stage,)
    steps: dict[tuple[str, Path], Step] = {}
    shared, own = [s for s in wanted if s in ("pool", "cache")], [s for s in wanted if s in ("train", "eval")]
    runs = runs_of(name, overrides)
    if stage == "cache" and any(is_url(run.config.paths.cache) for run in runs):
        raise UserError("paths.cache: a URL is read from; draw the cache into a folder and copy that to the server")
    order = [(s, run) for s in shared for run in runs] + [(s, run) for run in runs for s in own]
    for each, run in order:
        if each != "eval" and not run.config.trains:
            if stage == each and len(runs) == 1:
                raise UserError(f"{run.experiment}: evaluates {run.config.teacher.path} as it is; stage eval")
            continue
        if each == "cache" and is_url(run.config.paths.cache):
            continue  # it is there, on a server
        step = stage_step(each, run, place)
        assert step.artefact is not None
        steps.setdefault((each, step.artefact), step)
    if stage in ("report", "all"):
        if name in table_names():
            reports = [_report(name, overrides, out_folder(name, runs))]
        else:
            reports = [
                _report(run.experiment, run.overrides, Path(run.config.home), run.config.replicate) for run in runs
            ]
        steps |= {("report", out): step for out, step in reports}
    first = [run for run in runs if run.overrides == runs[0].overrides]  # repetitions differ in what can't be wrong
    checks = [_check(first, place)] if stage == "all" and first else []
    return [*checks, *steps.values()]


def _report(name: str, overrides: list[str], out: Path, replicate: str = "") -> tuple[Path, Step]:
    command = [sys.executable, "-m", "randcond.eval.report", name, *overrides]
    return out, Step(" ".join(filter(None, ["report", name, replicate])), command, out / "report.json")


def _check(runs: list[Run], place: Place) -> Step:
    """What any of the stages would refuse, before the first of them starts."""
    words = [*(run.experiment for run in runs), *runs[0].overrides]
    if place.hostfile or place.nodes or place.gpus:
        words.append(f"engine.processes={place.ranks(max(run.config.engine.processes for run in runs))}")
    return Step("check", [sys.executable, "-m", "randcond.train.dryrun", *words])


def _artefact(stage: str, config: Config) -> Path:
    """The file a stage writes last."""
    return {
        "pool": Path(config.paths.pool) / "manifest.json",
        "cache": Path(config.paths.cache) / "manifest.json",
        "train": Path(config.paths.run) / "train.json",
        "eval": eval_folder(config) / "scores.json",
    }[stage]


def show(step: Step) -> str:
    """A step as one would type it."""
    return shlex.join(step.command)


def with_free_port(command: list[str]) -> list[str]:
    """The deepspeed launcher's words with a port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    at = command.index("--module")
    return [*command[:at], "--master_port", str(port), *command[at:]]
