"""Checkpoints: full fp32 tensors by parameter name in safetensors, with a JSON manifest of checksums.

A folder per step, written aside and renamed, so what has a name is whole. The newest whose checksums hold is used.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from randcond.data.files import read_json, remove, sha256, write_json, written_whole

State = dict[str, dict[str, Tensor]]


def save(folder: Path, step: int, state: State, facts: dict[str, Any], keep: int) -> None:
    """Writes the state of `step` under `folder` and removes all but the newest `keep` checkpoints."""
    with written_whole(folder / f"step-{step:08d}") as aside:
        aside.mkdir()
        files = {}
        for kind, tensors in state.items():
            path = aside / f"{kind}.safetensors"
            save_file(tensors, path)
            files[path.name] = sha256(path)
        write_json(aside / "manifest.json", {"step": step, **facts, "files": files})
    for old in sorted(folder.glob("step-*"))[:-keep]:
        remove(old)


def load_newest(folder: Path) -> tuple[State, dict[str, Any]] | None:
    """State and manifest of the newest sound checkpoint, None when there is none; says which ones it passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        fault = _fault(path)
        if fault is None:
            manifest = read_json(path / "manifest.json")
            return {Path(name).stem: load_file(path / name) for name in manifest["files"]}, manifest
        print(f"checkpoint {path} is damaged ({fault}); falling back to the one before", flush=True)
    return None


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, None when it is sound."""
    try:
        manifest = read_json(path / "manifest.json")
        for name, digest in manifest["files"].items():
            if sha256(path / name) != digest:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None
