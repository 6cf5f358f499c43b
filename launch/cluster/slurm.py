"""An sbatch script for stages of experiments: srun starts the ranks, pre-emption saves and requeues.

In: the steps of a plan. Out: the script's text; `submit` hands it to sbatch.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.launch.runtime.exit_codes import FIRST_EXIT, PREEMPTED, USER_ERROR
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
    """The text of an sbatch script; `tasks`: one list of (command, distributed) per task, several make a job array.

    `ranks`: per host; `gpus`: each takes one, and `cpus` where the options don't say how many; `options`: further
    sbatch options of the site, as on its command line; `grace`: seconds before the time limit at which a training is
    asked to save.
    """
    array = len(tasks) > 1
    asked = shlex.split(options)
    own_cpus = any(option.startswith(("--cpus-per-", "-c")) for option in asked)
    head = {
        "job-name": f"randcond-{name}",
        "output": str(out / ("slurm-%A_%a.out" if array else "slurm-%j.out")),
        "open-mode": "append",
        "nodes": nodes,
        "ntasks-per-node": ranks,
        **({"gpus-per-node": ranks} if gpus else {}),
        **({"cpus-per-task": cpus} if gpus and not own_cpus else {}),
        **({"array": f"0-{len(tasks) - 1}"} if array else {}),
        "signal": f"USR1@{grace}",
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in head.items()),
        "#SBATCH --requeue",
    ]
    lines += [f"#SBATCH {shlex.quote(option)}" for option in asked]
    lines += [
        "",
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_ADDR=$(scontrol show node \"$first\" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')",
        # below the ports that the system gives to who asks for any; another one when the job is queued again
        "export MASTER_PORT=$((10000 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 20000))",
        f"export {RANKS_FROM}=slurm",
        # srun does not take it from the job by itself
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        "[ -e /dev/nvidiactl ] || export DS_ACCELERATOR=cpu",
        *(f"export {key}={shlex.quote(value)}" for key, value in environment.items()),
        f"cd {shlex.quote(str(Path.cwd()))}",
        "",
        "# The steps one after the other; what is done is kept, and the same script goes on from it.",
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
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}  # a task's own may be the array's",
        "job=${job:-$SLURM_JOB_ID}",
        f"lost={shlex.quote(str(out))}/lost-$job  # a line for each time that a rank was lost",
        f"export {FIRST_EXIT}={shlex.quote(str(out))}/first-end-$job",
        f'rm -f "${FIRST_EXIT}"',
        "steps",
        "code=$?",
        "# srun asks the other ranks to end and says the largest code; why the first one ended is what counts.",
        f'[ $code = 0 ] || [ ! -s "${FIRST_EXIT}" ] || code=$(cat "${FIRST_EXIT}")',
        f"# {PREEMPTED}: asked to end, all is saved. Another code but the user's mistake: a rank was lost.",
        f"if [ $code = {PREEMPTED} ] || {{ [ $code != 0 ] && [ $code != {USER_ERROR} ] && "
        f'echo "$code" >> "$lost" && [ "$(wc -l < "$lost")" -le {max_restarts} ]; }}; then',
        '  scontrol requeue "$job" && sleep 60  # Slurm ends this script once the job is queued again',
        "fi",
        '[ $code != 0 ] || rm -f "$lost"',
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def submit(path: Path) -> None:
    """Hands a script to sbatch; raises UserError when there is none, SystemExit when it refuses."""
    if not shutil.which("sbatch"):
        raise UserError(f"no sbatch here: submit on a login node with `sbatch {path}`")
    done = subprocess.run(["sbatch", str(path)])
    if done.returncode:
        print(f"error: sbatch refused {path}", file=sys.stderr)
        raise SystemExit(done.returncode)
