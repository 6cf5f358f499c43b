"""A plan as a Slurm job: one job that runs its steps in turn, or an array with a task for every arm of a table."""

from pathlib import Path

from randcond.launch.cluster.commands import Step
from randcond.launch.cluster.place import Place
from randcond.launch.cluster.slurm import script
from randcond.launch.config.tables import out_folder, runs_of
from randcond.launch.errors import UserError
from randcond.launch.runtime.processes import QUIET


def job_script(
    stage: str,
    name: str,
    overrides: list[str],
    place: Place,
    steps: list[Step],
    options: str,
    max_restarts: int,
    grace: int,
) -> tuple[Path, str]:
    """Where the sbatch script of a stage (or "all") goes, and its text.

    A table's train or eval becomes a job array: its arms don't wait for each other.
    """
    runs = runs_of(name, overrides)
    out = out_folder(name, runs) / "launch"
    spread = stage in ("train", "eval") and len(runs) > 1
    if not steps:
        raise UserError(f"{name}: its {stage} has nothing to run on a cluster; run it here, without --launcher slurm")
    groups = [[step] for step in steps] if spread else [steps]
    alone = not any(step.distributed for step in steps)  # a pool: one process, which no GPU should wait for
    text = script(
        name=f"{stage}-{name}",
        tasks=[[(step.command, step.distributed) for step in group] for group in groups],
        out=out,
        nodes=1 if alone else place.nodes or 1,
        ranks=1 if alone else place.gpus or max((run.config.engine.processes for run in runs), default=1),
        gpus=bool(place.gpus) and not alone,
        cpus=2 + max((run.config.train.workers for run in runs), default=0),
        options=options,
        environment=QUIET,
        max_restarts=max_restarts,
        grace=grace,
    )
    return out / f"{stage}.sbatch", text
