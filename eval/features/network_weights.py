"""Weights of scoring networks: loads them without running code from the file, and computes their fingerprints."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from randcond.data.inputs.catalogue import missing_input
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256
from randcond.model_zoo.checkpoints.hub import is_hub_id
from randcond.model_zoo.checkpoints.hub_files import hub_failure

SUFFIXES = (".json", ".txt", ".safetensors")
TRANSFORMERS_FILES = ("config.json", "model.safetensors")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def is_path(source: str) -> bool:
    """Returns True if a source of weights names a place on this machine, rather than a hub id or a published name."""
    return source.startswith(("/", "./", "../", "~"))


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """Loads the tensors of a .safetensors or .pth file by name, in the shapes and dtypes of the file, on the CPU.

    Raises UserError naming the configuration `key` if the file is missing or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"{key}: no weights at {path}{missing_input(str(path))}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)  # refuses pickles that would run code
    except Exception as error:  # a damaged file can make either loader raise any error
        raise UserError(f"{key}: {path}: weights can't be loaded ({first_line(error)})") from None


def find_weights(source: str, key: str) -> Path:
    """Returns a file of weights: `source` itself, or model.safetensors of a folder or of a hub id.

    Raises UserError naming the configuration `key` if there is none.
    """
    if Path(source).is_file():
        return Path(source)
    if Path(source).suffix in WEIGHT_SUFFIXES:
        raise UserError(f"{key}: no weights at {source}{missing_input(source)}")
    try:
        return model_folder(source, ("model.safetensors",)) / "model.safetensors"
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def fingerprint(folder: Path, whole: bool = False, suffixes: Sequence[str] = SUFFIXES) -> str:
    """Returns a sha256 over names and contents of a folder's configuration and weight files (16 hex digits).

    `whole`: hashes all files of the folder and its subfolders, as a spaCy pipeline needs.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*") if whole else folder.glob("*")):
        if path.is_file() and (whole or path.suffix in suffixes):
            digest.update(f"{path.relative_to(folder)}\n{sha256(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def settings_fingerprint(folder: Path) -> str:
    """Returns a sha256 over names and contents of a folder's configuration files (16 hex digits).

    For models whose weights have a fingerprint of their own, see tensors_fingerprint().
    """
    return fingerprint(folder, suffixes=(".json", ".txt"))


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error message, at most 300 characters, to quote it in our messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def model_folder(source: str, files: Sequence[str], sharded: bool = False) -> Path:
    """Returns the folder of a model that holds `files`: `source` itself, or a download if it is a hub id.

    sharded: its weights may be in several safetensors files, of any names. Downloads no pickles and no code.
    Raises UserError naming the missing files, or the hub id if the hub refuses, and ConnectionError if the hub is out
    of reach.
    """
    name, _, revision = source.partition("@")
    folder = Path(source)
    if not folder.is_dir() and is_hub_id(name):
        patterns = [*files, *(f"*{suffix}" for suffix in SUFFIXES if sharded or suffix != ".safetensors")]
        try:
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
        except Exception as error:  # of the hub's client, of its HTTP library, of this disk
            raise hub_failure(source, error) from None
    missing = [file for file in files if not (folder / file).is_file()]
    if sharded and not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise UserError(f"{source}: has no {', '.join(missing)}; weights are read from safetensors files only")
    return folder


def load_network(
    network: Any,
    processor: Any | None,
    folder: Path,
    families: Sequence[str],
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> tuple[Any, Any]:
    """Loads a transformers model in eval mode, on the CPU, and its processor (None without a class for it).

    `network`, `processor`: classes of transformers, also Auto classes. `families`: the model types that are allowed.
    `dtype`: auto is that of the weights.
    Raises UserError naming a folder that can't be loaded, is of another model type, or lacks weights. transformers
    itself would fill missing weights with random numbers.
    """
    from transformers import AutoConfig

    try:
        family = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if family not in families:
            raise ValueError(f"its model type is {family}, expected {' or '.join(families)}")
        model, report = network.from_pretrained(folder, use_safetensors=True, dtype=dtype, output_loading_info=True)
        if report["missing_keys"]:
            raise ValueError(f"it is made for another task and has no {min(report['missing_keys'])}")
        loaded_processor = processor.from_pretrained(folder) if processor else None
        return model.eval().requires_grad_(False), loaded_processor
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{folder}: can't be loaded as {network.__name__} ({first_line(error)})") from None


def tensors_fingerprint(network: nn.Module) -> str:
    """Returns a sha256 over names and contents of a loaded network's tensors (16 hex digits)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
