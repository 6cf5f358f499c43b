"""Settings of the tiny demo that most stage tests run, and a function to run `randcond` commands."""

import subprocess
import sys
from pathlib import Path

from randcond.launch.cluster.commands import Step, plan
from randcond.launch.cluster.place import Place
from randcond.launch.errors import UserError
from tests.support import warm
from tests.support.patience import HANG
from tests.support.web import free_port

# Overrides that make the demo small enough for a test. Its stages and its engine stay the same.
TINY = [
    "cache.size=96",
    "cache.batch=16",
    "cache.shard_size=32",
    "cache.steps=5",
    "train.steps=12",
    "train.global_batch=16",
    "train.warmup=2",
    "train.checkpoint_every=4",
    "train.log_every=2",
    "train.sample_every=0",
    "eval.size=16",
    "eval.batch=16",
    "eval.steps=5",
    "eval.cost=false",
]


def randcond(folder: Path, *words: str, code: int = 0, launcher: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs `randcond WORDS` in a folder and checks its exit code.

    The command or the stages that it starts run in warm processes (tests/support/warm.py), which saves most of the
    time. `launcher`: use the real command line and launcher instead. Some flags always need them.
    """
    if launcher or not (done := _warm(folder, list(words))):
        command = [sys.executable, "-m", "randcond.launch.cli", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == code, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _warm(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Runs a command in warm processes. Returns None if it has flags that only the real command line understands."""
    if not {"run", "launch"} & set(words[:1]) or {"--help", "--dry-run"} & set(words) or len(words) < 3:
        return warm.run([warm.Command("randcond.launch.cli", words, folder)])[0]
    stage, experiment, *overrides = words[1:]
    name = str(folder / experiment) if experiment.endswith(".yaml") else experiment
    gpus = None
    try:
        if "--gpus" in overrides:
            place = overrides.index("--gpus")
            _, number = overrides[place : place + 2]
            gpus, overrides = int(number), overrides[:place] + overrides[place + 2 :]
        if any(word.startswith("-") for word in [stage, *overrides]):
            return None
        steps = plan(stage, name, overrides, Place(gpus=gpus))
    except (UserError, ValueError):  # the command line says what is wrong
        return warm.run([warm.Command("randcond.launch.cli", words, folder)])[0]
    outputs, errors = [], []
    for step in steps:
        done = warm.run(_ranks(folder, step))
        outputs.append(done[0].stdout)
        assert not any(each.stdout for each in done[1:]), "only rank 0 writes to the standard output"
        errors += [each.stderr for each in done]
        if codes := [each.returncode for each in done if each.returncode]:
            return subprocess.CompletedProcess(step.command, codes[0], "".join(outputs), "".join(errors))
    return subprocess.CompletedProcess(words, 0, "".join(outputs), "".join(errors))


def _ranks(folder: Path, step: Step) -> list[warm.Command]:
    """Returns the processes of a step, as its launcher would start them."""
    start = step.command.index("--module" if "--module" in step.command else "-m")
    launcher, (module, *arguments) = step.command[:start], step.command[start + 1 :]
    ranks = int(launcher[launcher.index("--num_accelerators") + 1]) if "--num_accelerators" in launcher else 1
    if ranks == 1:
        return [warm.Command(module, arguments, folder, step.environment)]
    return on_ranks(ranks, module, arguments, folder, step.environment)


def on_ranks(
    ranks: int, module: str, arguments: list[str], folder: Path, environment: dict[str, str] | None = None
) -> list[warm.Command]:
    """Returns the commands of all ranks of `python -m MODULE ARGUMENTS`."""
    port = str(free_port())
    return [
        warm.Command(
            module, arguments, folder, {**(environment or {}), **_environment(rank, ranks), "MASTER_PORT": port}
        )
        for rank in range(ranks)
    ]


def _environment(rank: int, ranks: int) -> dict[str, str]:
    """Returns the environment variables that a launcher sets for a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "CROSS_RANK": 0}
    return {**{name: str(number) for name, number in numbers.items()}, "MASTER_ADDR": "127.0.0.1"}
