"""Copies one part of a diffusers folder file by file, without loading a network: as it is, or in another dtype."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import read_object
from randcond.model_zoo.checkpoints.weight_files import weight_files

_CONFIGURATIONS = (".json", ".txt", ".model", ".jinja")


def is_configuration(name: str) -> bool:
    """Returns True if a file of a part holds no weights: a configuration or a part of a tokenizer."""
    return name.endswith(_CONFIGURATIONS) and not name.startswith(".") and ".index." not in name


def copy_part(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Copies the configurations of a part byte for byte, and the weights that the libraries load, to a new folder.

    Variants (fp16, non_ema), pickles and hidden files are left out. `dtype`: of the floating-point weights; None: as
    they are. Raises UserError naming the file that is damaged, or the tensor that `dtype` can't hold.
    """
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and is_configuration(path.name):
            shutil.copyfile(path, target / path.name)
    files, size = weight_files(source), 0
    for path in files:
        if dtype is None:
            shutil.copyfile(path, target / path.name)
        else:
            size += _cast_file(path, target / path.name, dtype)
    for path in source.glob("*.safetensors.index.json"):
        index = read_object(path)
        if set(index.get("weight_map", {}).values()) == {file.name for file in files}:
            shutil.copyfile(path, target / path.name)
            if dtype is not None:
                index["metadata"] = {**index.get("metadata", {}), "total_size": size}
                (target / path.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a safetensors file by name, and its metadata. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); download or copy it again") from None


def _cast_file(source: Path, target: Path, dtype: torch.dtype) -> int:
    """Writes the weights of a file in `dtype`. Returns their bytes."""
    tensors, metadata = read_tensors(source)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        tensors[name] = tensor.to(dtype)
        if tensor.isfinite().all() and not tensors[name].isfinite().all():
            largest = torch.finfo(dtype).max
            raise UserError(
                f"{source}: {name} has values up to {tensor.abs().max():.3g}, more than the {largest:.5g} of "
                f"{str(dtype).removeprefix('torch.')}; use --dtype bf16"
            )
    save_file(tensors, target, {"format": "pt", **metadata})
    return sum(tensor.nbytes for tensor in tensors.values())
