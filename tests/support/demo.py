"""The tiny demo that most stage tests run, and the command line they run it by."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from randcond.launch.config.experiments import load_config
from tests.support import warm
from tests.support.patience import HANG

# Small enough for a test, through the very stages and engine of the demo.
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
    "train.sample_every=6",
    "eval.size=16",
    "eval.batch=16",
    "eval.steps=5",
]
PACKAGES = {"cache": "randcond.data", "train": "randcond.train", "eval": "randcond.eval"}


def randcond(folder: Path, *words: str, code: int = 0, launcher: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs `randcond WORDS` in a folder and checks its exit code.

    A single stage of one experiment is started as its launcher would start it, but in warm processes (tests/support/
    warm.py), which saves most of the time. `launcher`: by the command line and the real launcher.
    """
    if launcher or not (done := _stage(folder, list(words))):
        command = [sys.executable, "-m", "randcond.launch.cli", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG, env={**os.environ})
    assert done.returncode == code, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _stage(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Runs `randcond run STAGE EXPERIMENT` in warm ranks; None if the words ask for anything else."""
    if len(words) < 3 or words[0] != "run" or words[1] not in PACKAGES:
        return None
    stage, experiment, rest = words[1], words[2], words[3:]
    gpus = rest.pop(rest.index("--gpus") + 1) if "--gpus" in rest else None
    overrides = [word for word in rest if word != "--gpus"]
    if any(word.startswith("-") for word in overrides) or experiment == "demo":
        return None
    ranks = int(gpus) if gpus else load_config(_path(folder, experiment), overrides).engine.processes
    arguments = [*([stage] if stage == "cache" else []), experiment, *overrides]
    environments = [{}] if ranks == 1 else [_rank(rank, ranks) for rank in range(ranks)]
    port = str(_free_port())
    commands = [
        warm.Command(
            PACKAGES[stage], arguments, folder, {**environment, **({"MASTER_PORT": port} if environment else {})}
        )
        for environment in environments
    ]
    done = warm.run(commands)
    codes = [each.returncode for each in done if each.returncode]
    errors = "".join(each.stderr for each in done)
    return subprocess.CompletedProcess(done[0].args, codes[0] if codes else 0, done[0].stdout, errors)


def _path(folder: Path, experiment: str) -> str:
    return str(folder / experiment) if experiment.endswith(".yaml") else experiment


def _rank(rank: int, ranks: int) -> dict[str, str]:
    """What a launcher puts into a rank's environment."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "CROSS_RANK": 0}
    return {**{name: str(number) for name, number in numbers.items()}, "MASTER_ADDR": "127.0.0.1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
