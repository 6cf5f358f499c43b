"""Reads what a training run left in its folder: students, metrics, and the samples that it trained on."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def weights(run: Path, name: str = "student") -> dict[str, torch.Tensor]:
    """Returns the tensors of an exported student. `name`: "student" (raw weights) or "student_ema"."""
    part = "unet" if (run / name / "unet").is_dir() else "transformer"
    return load_file(run / name / part / "diffusion_pytorch_model.safetensors")


def difference(one: Path, other: Path, name: str = "student") -> float:
    """Returns the largest absolute difference between two runs' weights."""
    ours, theirs = weights(one, name), weights(other, name)
    assert ours.keys() == theirs.keys()
    return max((ours[key] - theirs[key]).abs().max().item() for key in ours)


def same_bits(one: Path, other: Path) -> bool:
    """Returns True if two runs ended with bit-identical students, raw and EMA."""
    for name in ("student", "student_ema"):
        ours, theirs = weights(one, name), weights(other, name)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return False
    return True


def metrics(run: Path) -> list[dict[str, Any]]:
    """Returns the logged lines, in order."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def samples(run: Path) -> dict[int, list[tuple[int, ...]]]:
    """Returns step -> (key, timestep, noise seed, caption) of all ranks' samples, in the order of the global batch."""
    seen: dict[int, list[tuple[int, ...]]] = {}
    for path in sorted((run / "samples").iterdir()):
        for line in map(json.loads, path.read_text().splitlines()):
            rows = zip(line["key"], line["timesteps"], line["noise_seed"], line["caption_id"], strict=True)
            seen.setdefault(line["step"], []).extend(rows)
    return seen
