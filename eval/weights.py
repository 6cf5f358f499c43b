"""Weights of scoring networks: read as nothing but tensors, told apart by a fingerprint, refused with a reason."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from randcond.data.files import sha256
from randcond.data.inputs import missing_input

SUFFIXES = (".json", ".txt", ".safetensors")


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file and nothing else of it.

    Raises ValueError naming the key of the configuration when the file is not there or holds anything but tensors.
    """
    if not path.is_file():
        raise ValueError(f"{key}: no weights at {path}{missing_input(str(path))}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)  # refuses whatever would run code
    except Exception as error:  # whatever a damaged file makes of either reader
        raise ValueError(f"{key}: {path}: weights that don't load ({first_line(error)})") from None


def fingerprint(folder: Path, whole: bool = False) -> str:
    """sha256 over names and contents of a folder's configurations and weights (16 hex digits).

    `whole`: of all its files, at any depth, as a spaCy pipeline needs it.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*") if whole else folder.glob("*")):
        if path.is_file() and (whole or path.suffix in SUFFIXES):
            digest.update(f"{path.relative_to(folder)}\n{sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough to stand inside one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
