"""A diffusers folder: which pipeline class it is for, in which types its parts load, whether its weights are whole."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from randcond.launch.errors import UserError

logging.disable_progress_bar()  # ours says what takes long
transformers_logging.disable_progress_bar()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Pipeline class -> its options that are no part of the model.
FAMILIES: dict[type[DiffusionPipeline], dict[str, Any]] = {
    StableDiffusionPipeline: {"safety_checker": None, "requires_safety_checker": False},
    StableDiffusionXLPipeline: {"add_watermarker": False},
}


def check_weights(folder: Path) -> None:
    """Raises UserError naming a weight file of a pipeline that is cut off or damaged: its loaders don't name it."""
    for path in (path for path in sorted(folder.glob("*/*.safetensors")) if len(path.suffixes) == 1):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error}); fetch or copy it again") from None


def part_dtypes(folder: Path, dtype: str) -> dict[str, torch.dtype]:
    """The types of a pipeline's parts: all in `dtype`, but an autoencoder that asks for more in fp32."""
    # Most autoencoders overflow, or show their rounding, in 16 bits; diffusers takes an unset flag for set.
    upcast = json.loads((folder / "vae" / "config.json").read_text()).get("force_upcast", True)
    return {"default": DTYPES[dtype], "vae": torch.float32 if upcast else DTYPES[dtype]}


def with_parts(pipe: Any, **parts: Any) -> Any:
    """A pipeline of the same family and options on some other parts."""
    kept = {key: pipe.config[key] for key in ("force_zeros_for_empty_prompt",) if key in pipe.config}
    return type(pipe)(**{**pipe.components, **kept, **parts, **FAMILIES[type(pipe)]})


def pipeline_class(folder: Path) -> type[DiffusionPipeline]:
    """The pipeline a diffusers folder is made for; raises UserError naming the known ones."""
    name = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    for family in FAMILIES:
        if family.__name__ == name:
            return family
    raise UserError(f"{folder}: is a {name}; a teacher is one of {', '.join(f.__name__ for f in FAMILIES)}")
