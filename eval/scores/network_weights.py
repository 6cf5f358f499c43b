"""Weights of scoring networks: read as nothing but tensors, told apart by a fingerprint, refused with a reason."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from randcond.data.inputs.catalogue import missing_input
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256
from randcond.model_zoo.hub import is_hub_id

SUFFIXES = (".json", ".txt", ".safetensors")
TRANSFORMERS_FILES = ("config.json", "model.safetensors")


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file and nothing else of it.

    Raises UserError naming the key of the configuration when the file is not there or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"{key}: no weights at {path}{missing_input(str(path))}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)  # refuses whatever would run code
    except Exception as error:  # whatever a damaged file makes of either reader
        raise UserError(f"{key}: {path}: weights that don't load ({first_line(error)})") from None


def fingerprint(folder: Path, whole: bool = False, suffixes: Sequence[str] = SUFFIXES) -> str:
    """sha256 over names and contents of a folder's configurations and weights (16 hex digits).

    `whole`: of all its files, at any depth, as a spaCy pipeline needs it.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*") if whole else folder.glob("*")):
        if path.is_file() and (whole or path.suffix in suffixes):
            digest.update(f"{path.relative_to(folder)}\n{sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def settings_fingerprint(folder: Path) -> str:
    """The same over its configurations alone, where the weights have another one: what is done with them."""
    return fingerprint(folder, suffixes=(".json", ".txt"))


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough to stand inside one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def model_folder(source: str, files: Sequence[str]) -> Path:
    """The folder of a model that holds `files`; of a hub id, only what is no pickle and no code is fetched.

    Raises UserError naming what is missing, or the hub id that could not be had.
    """
    name, _, revision = source.partition("@")
    folder = Path(source)
    if not folder.is_dir() and is_hub_id(name):
        patterns = [*files, *(f"*{suffix}" for suffix in SUFFIXES if suffix != ".safetensors")]
        try:
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{source}: there is no such folder, and the hub did not give it ({first_line(error)}); "
                f"where the hub is out of reach, name a folder that holds {', '.join(files)}"
            ) from None
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise UserError(f"{source}: no {', '.join(missing)} there; weights are read from safetensors only")
    return folder


def load_network(network: Any, processor: Any | None, folder: Path, families: Sequence[str]) -> tuple[Any, Any]:
    """A class of transformers (or one of its Auto classes) in eval mode and fp32, on the CPU, and its processor if any.

    Raises UserError naming a folder that does not load, is of another family, or lacks weights: transformers itself
    would fill those up with random ones.
    """
    from transformers import AutoConfig

    try:
        family = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if family not in families:
            raise ValueError(f"it is a {family}; known: {', '.join(families)}")
        model, report = network.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"made for another task: it has no {min(report['missing_keys'])}")
        found = processor.from_pretrained(folder) if processor else None
        return model.eval().requires_grad_(False), found
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: does not load as {network.__name__} ({first_line(error)})") from None


def tensors_fingerprint(network: nn.Module) -> str:
    """sha256 over names and contents of a network's tensors as they were loaded (16 hex digits)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
