"""Writes the sbatch script for stages of experiments. srun starts the ranks. A preempted job saves and is requeued.

In: the steps of a plan. Out: the script's text. `submit` passes it to sbatch.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.launch.runtime.exit_codes import FIRST_EXIT, PREEMPTED, USER_ERROR
from randcond.launch.runtime.logs import SAID
from randcond.launch.runtime.processes import RANKS_FROM


def script(
    name: str,
    tasks: Sequence[Sequence[tuple[list[str], bool]]],
    out: Path,
    nodes: int,
    ranks: int,
    gpus: bool,
    cpus: int,
    options: str,
    environment: Mapping[str, str],
    max_restarts: int,
    grace: int,
) -> str:
    """Returns the text of an sbatch script.

    tasks: a list of (command, distributed) for each task; several tasks become a job array
    ranks: ranks per host
    gpus: each rank gets one GPU, and `cpus` CPUs unless `options` sets their number
    options: further sbatch options of the site, as on sbatch's command line
    max_restarts: how often the job is requeued because a rank was lost
    grace: seconds before the time limit at which Slurm tells a training to save
    """
    array = len(tasks) > 1
    try:
        site_options = shlex.split(options)
    except ValueError as error:
        raise UserError(f"--sbatch: {error} in {options!r}") from None
    sets_cpus = any(option.startswith(("--cpus-per-", "-c")) for option in site_options)
    directives = {
        "job-name": f"randcond-{name}",
        "output": str(out / ("slurm-%A_%a.out" if array else "slurm-%j.out")),
        "open-mode": "append",
        "nodes": nodes,
        "ntasks-per-node": ranks,
        **({"gpus-per-node": ranks} if gpus else {}),
        **({"cpus-per-task": cpus} if gpus and not sets_cpus else {}),
        **({"array": f"0-{len(tasks) - 1}"} if array else {}),
        "signal": f"USR1@{grace}",
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in directives.items()),
        "#SBATCH --requeue",
    ]
    lines += [f"#SBATCH {shlex.quote(option)}" for option in site_options]
    lines += [
        "",
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_ADDR=$(scontrol show node \"$first\" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')",
        # below the ports that the system assigns by itself; a requeued job gets another port
        "export MASTER_PORT=$((10000 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 20000))",
        f"export {RANKS_FROM}=slurm",
        # srun does not inherit this from the job
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        "[ -e /dev/nvidiactl ] || export DS_ACCELERATOR=cpu",
        *(f"export {key}={shlex.quote(value)}" for key, value in environment.items()),
        f"cd {shlex.quote(str(Path.cwd()))}",
        "",
        "# Runs the steps one after the other. Finished work is kept, so the same script continues from it.",
        "steps() {",
    ]
    for number, steps in enumerate(tasks):
        indent = "  "
        if array:
            lines.append(f'  if [ "$SLURM_ARRAY_TASK_ID" = {number} ]; then')
            indent = "    "
        for command, distributed in steps:
            srun = "srun --kill-on-bad-exit=1 --wait=0" if distributed else "srun --nodes=1 --ntasks=1"
            lines.append(f"{indent}{srun} {shlex.join(command)} || return $?")
        if array:
            lines.append("  fi")
    lines += [
        "}",
        "",
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "job=${job:-$SLURM_JOB_ID}",
        f"lost={shlex.quote(str(out))}/lost-$job  # one line for each lost rank",
        f"export {FIRST_EXIT}={shlex.quote(str(out))}/first-end-$job",
        f"export {SAID}={shlex.quote(str(out))}/errors-$job  # the ranks' errors, so that each is shown once",
        f'rm -rf "${FIRST_EXIT}" "${SAID}"',
        f'mkdir -p "${SAID}"',
        "steps",
        "code=$?",
        f'rm -rf "${SAID}"',
        "# srun ends the other ranks and returns the largest code. The first failed rank's code is what counts.",
        f'[ $code = 0 ] || [ ! -s "${FIRST_EXIT}" ] || code=$(cat "${FIRST_EXIT}")',
        f"# {PREEMPTED}: preempted, all is saved. {USER_ERROR}: the user's mistake. Any other code: a rank was lost.",
        f"if [ $code = {PREEMPTED} ] || {{ [ $code != 0 ] && [ $code != {USER_ERROR} ] && "
        f'echo "$code" >> "$lost" && [ "$(wc -l < "$lost")" -le {max_restarts} ]; }}; then',
        '  scontrol requeue "$job" && sleep 60  # Slurm ends this script once the job is requeued',
        "fi",
        '[ $code != 0 ] || rm -f "$lost"',
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def submit(path: Path) -> None:
    """Passes a script to sbatch. Raises UserError if sbatch is not installed, SystemExit if it refuses the script."""
    if not shutil.which("sbatch"):
        raise UserError(f"sbatch is not installed here; run `sbatch {path}` on a login node")
    done = subprocess.run(["sbatch", str(path)])
    if done.returncode:
        print(f"error: sbatch refused {path}", file=sys.stderr)
        raise SystemExit(done.returncode)
