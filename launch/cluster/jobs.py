"""Turns a plan into a Slurm job.

The job runs the steps one after the other, or it is an array with a task for each row of a table.
"""

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
    checks: list[Step],
    options: str,
    max_restarts: int,
    grace: int,
) -> tuple[Path, str]:
    """Returns the path and the text of the sbatch script for a stage (or "all"), which begins with `checks`.

    Stages train and eval of a table become a job array, because the rows don't wait for each other.
    Each row's ranks then check it themselves.
    Raises UserError if the stage has nothing to run on a cluster.
    """
    runs = runs_of(name, overrides)
    out = out_folder(name, runs) / "launch"
    is_array = stage in ("train", "eval") and len(runs) > 1
    if not steps:
        raise UserError(f"{name}: stage {stage} has nothing to run on a cluster; run it here, without --launcher slurm")
    groups = [[step] for step in steps] if is_array else [[*checks, *steps]]
    one_process = not any(step.distributed for step in steps)  # a pool: needs no GPU
    text = script(
        name=f"{stage}-{name}",
        tasks=[[(step.command, step.distributed) for step in group] for group in groups],
        out=out,
        nodes=1 if one_process else place.nodes or 1,
        ranks=1 if one_process else place.gpus or max((run.config.engine.processes for run in runs), default=1),
        gpus=bool(place.gpus) and not one_process,
        cpus=2 + max((run.config.train.workers for run in runs), default=0),
        options=options,
        environment=QUIET,
        max_restarts=max_restarts,
        grace=grace,
    )
    return out / f"{stage}.sbatch", text
