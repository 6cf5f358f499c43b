"""Measures what only a GPU shows, the most useful figures first, within a time limit (`make bench-gpu`).

Each measurement is a command of its own. When it ends, its figures are in OUT/NAME, and OUT/summary.md has a line for
it. The same command continues after an interruption: it repeats no measurement except those that failed.
`--minutes M`: the time limit; a measurement does not begin if it would take longer than what is left. `--only LIST`:
these ones, separated by commas. `--list`: shows them. `--rehearse`: all of them with tiny networks, also without a GPU.

For a machine that has torch but no network: `--pack FOLDER [--python 3.12]` collects the wheels of all other packages,
and there `--wheels FOLDER` adds them to the machine's own packages, in a virtual environment.
"""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

# This module must run on a machine without our packages: it imports the standard library alone.
ROOT = Path(__file__).parents[2]
ON_THE_MACHINE = ("torch", "torchvision", "triton", "nvidia-", "cuda-", "setuptools")  # not among the wheels
PATIENCE = 2.0  # times the expected minutes after which a measurement is stopped
REHEARSAL = ["--rehearse", "--rounds", "2"]


@dataclass(frozen=True)
class Measurement:
    """A command, and the minutes that it takes on an H200 (estimated)."""

    name: str
    what: str
    words: list[str]  # of python
    minutes: float


STEP, DRAW = ["-m", "tests.bench.step"], ["-m", "tests.bench.draw"]
MEASUREMENTS = [
    Measurement("b-base", "B-Base beside the published recipe at 64 and 16 at once", [*STEP, "--sizes", "b-base"], 3),
    Measurement("sd35-12", "SD 3.5 Medium -> 12 layers at 512 pixels", [*STEP, "--sizes", "sd35-12"], 3),
    Measurement("pixart-14", "PixArt-Sigma -> 14 layers at 512 pixels", [*STEP, "--sizes", "pixart-14"], 2.5),
    Measurement("koala-700m", "KOALA-700M beside its recipe", [*STEP, "--sizes", "koala-700m"], 3),
    Measurement(
        "b-base-128",
        "B-Base, 128 samples at once",
        [*STEP, "--sizes", "b-base", "--alone", "train.global_batch=128"],
        1.5,
    ),
    Measurement(
        "b-base-32", "B-Base, 32 samples at once", [*STEP, "--sizes", "b-base", "--alone", "train.global_batch=32"], 1.5
    ),
    Measurement("c-micro", "C-Micro", [*STEP, "--sizes", "c-micro", "--alone"], 1.5),
    Measurement(
        "switches", "each switch alone on B-Base", [*STEP, "--sizes", "b-base", "--alone", "--switches", "all"], 8
    ),
    Measurement("caching", "caching beside diffusers' pipeline", [*DRAW, "--sizes", "b-base", "--rounds", "5"], 3),
]


def main() -> None:
    """Makes the measurements that are missing. Exits with 1 if one failed."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gpu"))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--python", default="{}.{}".format(*sys.version_info))
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    names = [name for name in asked.only.split(",") if name]
    if unknown := set(names) - {each.name for each in MEASUREMENTS}:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(e.name for e in MEASUREMENTS)}")
    wanted = [each for each in MEASUREMENTS if not names or each.name in names]
    if asked.list:
        print("\n".join(f"{each.name:14}{each.minutes:5.1f} min   {each.what}" for each in wanted))
    elif asked.pack:
        pack(asked.pack, asked.python)
    else:
        ends = time.monotonic() + 60 * asked.minutes
        python = installed(asked.wheels, asked.out) if asked.wheels else sys.executable
        sys.exit(run_all(wanted, asked.out.absolute(), python, asked.rehearse, ends))


def run_all(wanted: list[Measurement], out: Path, python: str, rehearse: bool, ends: float) -> int:
    """Makes the measurements in their order until the time is over. Returns 1 if one failed."""
    failed = 0
    for each in wanted:
        folder = out / each.name
        left = (ends - time.monotonic()) / 60
        if outcome(folder).get("rc") == 0:
            print(f"{each.name}: measured before")
        elif not rehearse and each.minutes > left:
            print(f"{each.name}: takes about {each.minutes:.1f} minutes, {max(0, left):.1f} are left", flush=True)
        else:
            print(f"{each.name}: {each.what}", flush=True)
            limit = 60 * min(PATIENCE * each.minutes, left) if not rehearse else None
            failed += bool(measure(each, folder, python, rehearse, limit))
        (out / "summary.md").write_text(summary(wanted, out), encoding="utf-8")
    print(f"\n{summary(wanted, out)}\nthe summary   {out / 'summary.md'}")
    return min(1, failed)


def measure(each: Measurement, folder: Path, python: str, rehearse: bool, limit: float | None) -> int:
    """Runs one measurement. Its output goes to log.txt of the folder. Returns its exit code, 124 if it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [python, *each.words, *(REHEARSAL if rehearse else []), "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            rc = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            rc = 124
    said = {"rc": rc, "seconds": round(time.monotonic() - began, 1), "command": command[1:]}
    (folder / "outcome.json").write_text(json.dumps(said, indent=2), encoding="utf-8")
    return rc


def outcome(folder: Path) -> dict[str, Any]:
    """Returns how a measurement ended, {} if it was not made."""
    path = folder / "outcome.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def summary(wanted: list[Measurement], out: Path) -> str:
    """Returns a Markdown list with a line of figures for each measurement."""
    lines = []
    for each in wanted:
        ended = outcome(out / each.name)
        results = sorted(path for path in (out / each.name).glob("*.json") if path.name != "outcome.json")
        said = "; ".join(text for path in results for text in figures(json.loads(path.read_text())["found"]))
        if not ended:
            lines.append(f"- {each.name}: not measured")
        elif ended["rc"]:
            last = ((out / each.name / "log.txt").read_text(errors="replace").strip().splitlines() or [""])[-1]
            stopped = "took too long" if ended["rc"] == 124 else f"exit code {ended['rc']}: {last[:200]}"
            until = f"; until then: {said}" if said else ""
            lines.append(f"- {each.name}: failed after {ended['seconds']:.0f} s, {stopped}{until}")
        else:
            lines.append(f"- {each.name} ({ended['seconds']:.0f} s): {said}")
    return "\n".join(lines) + "\n"


def figures(found: dict[str, Any]) -> list[str]:
    """Returns the figures of a bench's result, in words."""
    said = [f"failed: {found['failed']}"] if "failed" in found else []
    for name, value in found.items():
        if isinstance(value, dict) and "median" in value:
            memory = f", {value['memory_gb']:.1f} GB" if value.get("memory_gb") else ""
            said.append(f"{name} {value['median']:.3f}{memory}")
        elif isinstance(value, dict) and "share_of_matmul_rate" in value:
            speed = value.get("samples_per_s") or value.get("images_per_s", 0.0)
            said.append(f"{name} {speed:.4g}/s, {value['share_of_matmul_rate']:.1%} of the matmul rate")
        elif isinstance(value, dict) and name != "parts":
            said += figures(value)
    if found.get("memory_gb"):
        said.append(f"{found['memory_gb']:.1f} GB")
    return said


def installed(wheels: Path, out: Path) -> str:
    """Makes a virtual environment in OUT/venv with the wheels; returns its Python."""
    python = out / "venv" / "bin" / "python"
    if not (out / "venv" / ".ready").is_file():
        found = sorted(map(str, wheels.glob("*.whl")))
        if not found:
            sys.exit(f"--wheels: no wheels in {wheels}; collect them with --pack")
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", out / "venv"], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, *found], check=True)
        subprocess.run([*pip, "--no-build-isolation", "--editable", ROOT], check=True)
        (out / "venv" / ".ready").touch()
    return str(python)


def pack(folder: Path, python: str) -> None:
    """Collects the wheels of the packages that a training needs, without torch and what comes with it.

    python: the version of the other machine's Python. Versions are those that are installed here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = [f"{name}=={version(name)}" for name in sorted(dependencies("randcond") - {"randcond"})]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    only = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--dest", folder]
    built = []
    for each in needed:
        if subprocess.run([*pip, "download", *only, each], capture_output=True).returncode:
            subprocess.run(
                [*pip, "wheel", "--no-deps", "-w", folder, each], check=True
            )  # it is published as source only
            built.append(each)
    size = sum(path.stat().st_size for path in folder.glob("*.whl")) / 1e6
    print(f"{len(needed)} wheels, {size:.0f} MB, in {folder}; built here: {', '.join(built) or 'none'}")


def dependencies(package: str) -> set[str]:
    """Returns the package and what it needs, without extras and without torch and what comes with it."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    left = [package]
    while left:
        name = canonicalize_name(left.pop())
        if name in found or name.startswith(ON_THE_MACHINE):
            continue
        found.add(name)
        needed = map(Requirement, requires(name) or [])
        left += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


if __name__ == "__main__":
    main()
