"""Times what a user waits for before the first training step, by part (`make bench-start`).

It times `randcond --help`, a dry run, and a training of the embedded world from the command to the end of its first
step: forked, and under the deepspeed launcher, in turns. `--rounds N`: how often each is timed.
"""

import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from randcond.launch.runtime.files import read_json
from tests.bench.results import interval, save

RANDCOND = str(Path(sys.executable).with_name("randcond"))
BEFORE = "check, and start of ranks"  # until the ranks' first line of Python
SMALL = ["cache.size=100", "train.steps=2", "cache.steps=2", "train.sample_every=0"]


def main() -> None:
    """Prints and saves the medians."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, Any] = {}
    for words in (["--help"], ["run", "all", "demo", "--dry-run"]):
        taken = [timed([RANDCOND, *words], Path.cwd()) for _ in range(rounds)]
        found[" ".join(words)] = {"median": interval(taken)[0]}
        print(f"randcond {' '.join(words):28}{interval(taken)[0]:6.2f} s   ({min(taken):.2f} to {max(taken):.2f})")
    with TemporaryDirectory() as name:
        folder = Path(name)
        for stage in ("pool", "cache"):
            timed([RANDCOND, "run", stage, "demo-with", *SMALL], folder)
        found["training"] = training(folder, rounds)
    save("startup", found)


def training(folder: Path, rounds: int) -> dict[str, Any]:
    """Returns the seconds from the command to the end of the first step, by way to start it and by part."""
    ways: dict[str, list[str]] = {"forked": [], "deepspeed": ["--launcher", "deepspeed"]}
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for number in range(rounds):
        for way, flags in ways.items():
            run = folder / f"run-{way}-{number}"
            began = time.time()
            timed([RANDCOND, "run", "train", "demo-with", *SMALL, f"paths.run={run}", *flags], folder)
            mine = read_json(run / "startup.json")
            whole = (run / "startup.json").stat().st_mtime - began
            for part, seconds in {BEFORE: whole - sum(mine.values()), **mine, "whole": whole}.items():
                found[way].setdefault(part, []).append(seconds)
    print("training of the embedded world on two ranks, from the command to the end of its first step:")
    for way, parts in found.items():
        print(way)
        for part, taken in parts.items():
            print(f"  {part:28}{interval(taken)[0]:6.2f} s   ({min(taken):.2f} to {max(taken):.2f})")
    return {way: {part: {"median": interval(each)[0]} for part, each in parts.items()} for way, parts in found.items()}


def timed(command: list[str], folder: Path) -> float:
    """Returns the seconds that a command takes. Raises SystemExit if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
