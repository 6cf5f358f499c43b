"""Reads a diffusers folder: its JSON files, the dtypes of its parts, and whether its weight files are intact."""

import errno
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from randcond.launch.errors import UserError

logging.disable_progress_bar()  # randcond shows its own progress
transformers_logging.disable_progress_bar()
_OBJECTS = {  # JSON files that hold an object
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "vocab.json",
}
_DAMAGED = (  # what the libraries raise for damaged files
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    NotImplementedError,
    StrictDataclassError,
)
_OF_TOKENS = {"vocab.json", "tokenizer.json", "added_tokens.json"}  # a token may look like a path
_LOCAL_PATH = re.compile(r"/[^/]+/|~[/\\]|\.\.[/\\]|[A-Za-z]:[/\\]|\\\\|file:")
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def loading(folder: Path | str) -> Iterator[None]:
    """A context that loads parts of a folder. Raises UserError naming the folder if a file is missing or damaged.

    diffusers and transformers raise an OSError without a number, or a ValueError, for such files. For a configuration
    with values of other types they raise what these values lead to. RANDCOND_TRACEBACK shows where. After an error
    diffusers leaves the part's dtype as torch's default; it is set back.
    """
    dtype = torch.get_default_dtype()
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{folder}: incomplete or damaged ({type(error).__name__}: {reason}); download or copy it again"
        ) from error
    finally:
        torch.set_default_dtype(dtype)


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object. Raises UserError naming the file if it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; download or copy it again") from None
    except RecursionError:
        raise UserError(f"{path}: damaged JSON (it is nested too deeply); download or copy it again") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged JSON ({error}); download or copy it again") from None
    if not isinstance(data, dict):
        found = type(data).__name__
        raise UserError(f"{path}: damaged JSON (expected an object, found {found}); download or copy it again")
    return data


def check_files(folder: Path) -> None:
    """Raises UserError naming a damaged safetensors or JSON file of a pipeline, or a tokenizer without a vocabulary.

    The loaders' own errors do not name the file. transformers would silently make an empty tokenizer.
    """
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        if path.name in _OBJECTS or path.name.endswith(".safetensors.index.json"):
            read_object(path)
    for path in (path for path in sorted(folder.glob("*/*.safetensors")) if len(path.suffixes) == 1):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error}); download or copy it again") from None

    for part in (path for path in sorted(folder.glob("tokenizer*")) if path.is_dir()):
        if not any((part / name).is_file() for name in VOCABULARIES):
            raise UserError(
                f"{folder}: incomplete or damaged (no {part.name}/tokenizer.json); download or copy it again"
            )


def compute_dtype(name: str) -> torch.dtype:
    """Returns the dtype that networks compute in, given the setting `teacher.dtype`. With 8 bits it is bf16."""
    return torch.bfloat16 if name.startswith("int8") else DTYPES[name]


def part_dtypes(folder: Path, dtype: str) -> dict[str, torch.dtype]:
    """Returns the dtype in which each part of a pipeline is loaded.

    `dtype`: the setting `teacher.dtype`. An autoencoder that needs upcasting is loaded in fp32.
    """
    # Most autoencoders overflow or show rounding errors in 16 bits. In diffusers, a missing flag means True.
    upcast = read_object(folder / "vae" / "config.json").get("force_upcast", True)
    default = compute_dtype(dtype)
    return {"default": default, "vae": torch.float32 if upcast else default}


def class_name(path: Path) -> str | None:
    """Returns the name of the class that a model_index.json or config.json declares."""
    return read_object(path).get("_class_name")


def remove_local_paths(files: Iterable[Path]) -> None:
    """Takes the paths of machines out of JSON files: the libraries record them, and they must not be published.

    Leaves a file that holds none, a damaged one, and vocabularies as they are.
    """
    for path in files:
        try:
            settings = {} if path.name in _OF_TOKENS else json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            continue
        if isinstance(settings, dict) and (public := _without_local_paths(settings)) != settings:
            path.write_text(json.dumps(public, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without_local_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings without `_name_or_path`, which may be a relative path, and without values that are paths."""
    return {
        key: _without_local_paths(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key != "_name_or_path" and not (isinstance(value, str) and is_local_path(value))
    }


def is_local_path(text: str) -> bool:
    """Returns True for an absolute path, one of a home folder, and one that leaves its folder (../)."""
    return _LOCAL_PATH.match(text) is not None


def freeze(pipe: Any, device: str | torch.device) -> None:
    """Moves a pipeline's networks to a device, freezes them, and hides the pipeline's progress bar."""
    for network in pipe.components.values():
        if isinstance(network, nn.Module):
            network.to(device).eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
