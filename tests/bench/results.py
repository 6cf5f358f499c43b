"""Saves the results of a bench, as medians with intervals, and compares them with the last saved ones.

The results behind the figures of README.md and docs/speed.md are in tests/bench/record. The first run on a machine is
compared with them.
"""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from randcond.launch.runtime.files import read_json, write_json

FOLDER = Path("runs/bench")
RECORD = Path(__file__).parent / "record"
PACKAGES = ("torch", "diffusers", "transformers", "deepspeed", "xformers", "triton")


def interval(values: list[float]) -> tuple[float, float, float]:
    """Returns (median, low, high): the median and its 95 % interval by 10,000 bootstrap samples."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def environment() -> dict[str, Any]:
    """Returns what a measurement depends on: date, arguments, commit, device, threads and library versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "arguments": sys.argv[1:],
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": None if cuda else torch.get_num_threads(),
        "versions": versions,
    }


def processor() -> str:
    """Returns the name of the CPU, and whether it does bf16 in hardware."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    known = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{known[0] if known else platform.machine()}, bf16 in {'hardware' if bf16_in_hardware() else 'software'}"


def bf16_in_hardware() -> bool:
    """Returns True if this CPU multiplies bf16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def save(name: str, found: dict[str, Any], folder: Path = FOLDER) -> None:
    """Saves the results of a bench. Prints each median beside the one of the last saved result."""
    path = folder / f"{name}.json"
    last = path if path.is_file() else RECORD / path.name
    if last.is_file():
        before = read_json(last)
        was = before["environment"]
        print(f"\nlast saved, {was['date']} at {was['commit']} on {was['device']}:")
        for key, value in _ratios(found).items():
            old = _ratios(before["found"]).get(key)
            if old is not None:
                print(f"  {key:40}{old:8.3f}  now {value:8.3f}")
    write(name, found, folder)
    print(f"saved: {path}\n{json.dumps(environment())}")


def write(name: str, found: dict[str, Any], folder: Path) -> None:
    """Writes the results of a bench, so far, into NAME.json of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {"environment": environment(), "found": found})


def _ratios(found: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns path of keys -> median, for every median in nested results."""
    flat: dict[str, float] = {}
    for key, value in found.items():
        if isinstance(value, dict) and "median" in value:
            flat[f"{prefix}{key}"] = value["median"]
        elif isinstance(value, dict):
            flat |= _ratios(value, f"{prefix}{key} ")
    return flat
