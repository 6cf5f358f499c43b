"""Where the scorers' networks come from, and what names them in a protocol: safetensors and JSON, nothing that runs.

In: a folder, or `owner/name` or `owner/name@revision` on the hub. Out: a folder on this machine, its fingerprint, and
what transformers makes of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from randcond.eval.weights import SUFFIXES, first_line
from randcond.model_zoo.teacher import is_hub_id

TRANSFORMERS_FILES = ("config.json", "model.safetensors")


def model_folder(source: str, files: Sequence[str]) -> Path:
    """The folder of a model that holds `files`; of a hub id, only what is no pickle and no code is fetched.

    Raises ValueError naming what is missing, or the hub id that could not be had.
    """
    name, _, revision = source.partition("@")
    folder = Path(source)
    if not folder.is_dir() and is_hub_id(name):
        patterns = [*files, *(f"*{suffix}" for suffix in SUFFIXES if suffix != ".safetensors")]
        try:
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{source}: there is no such folder, and the hub did not give it ({first_line(error)}); "
                f"where the hub is out of reach, name a folder that holds {', '.join(files)}"
            ) from None
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ValueError(f"{source}: no {', '.join(missing)} there; weights are read from safetensors only")
    return folder


def load_network(network: Any, processor: Any, folder: Path, families: Sequence[str]) -> tuple[Any, Any]:
    """A class of transformers (or one of its Auto classes) in eval mode and fp32, on the CPU, and its processor.

    Raises ValueError naming a folder that does not load, is of another family, or lacks weights: transformers itself
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
        return model.eval().requires_grad_(False), processor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder}: does not load as {network.__name__} ({first_line(error)})") from None
