"""The tiny demo that most stage tests run, and the command line they run it by."""

import os
import subprocess
import sys
from pathlib import Path

# Small enough for a test, through the very stages, launcher and engine of the demo.
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


def randcond(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `randcond WORDS` in a folder and checks its exit code."""
    command = [sys.executable, "-m", "randcond.launch.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env={**os.environ})
    assert done.returncode == code, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
