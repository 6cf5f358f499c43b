"""Exports a trained student as a diffusers folder: its U-Net with the teacher's VAE, text encoders, sampler; loads it.

`StableDiffusionPipeline` / `StableDiffusionXLPipeline.from_pretrained` take the folder with nothing of ours imported
(a SLIM student needs `load_pipeline`); safetensors only.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.configuration import plain_config
from randcond.model_zoo.diffusers_folder import FAMILIES, pipeline_class, with_parts
from randcond.model_zoo.students.slim import SlimUNet2DConditionModel

Shapes = dict[str, tuple[int, ...]]
UNETS = {model.__name__: model for model in (UNet2DConditionModel, SlimUNet2DConditionModel)}


def unet_weights(wrapped: dict[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's own tensors out of the trained module's (projectors stay behind)."""
    return {name.removeprefix("unet."): tensor for name, tensor in wrapped.items() if name.startswith("unet.")}


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def student_unet(like: UNet2DConditionModel, weights: dict[str, Tensor], dtype: torch.dtype) -> UNet2DConditionModel:
    """A U-Net of the same architecture with these weights [name -> fp32 tensor], in eval mode.

    Raises UserError naming the first tensor when the weights are of another architecture.
    """
    with torch.device("meta"):
        unet = type(like).from_config(plain_config(like.config))
    check_shapes(shapes(unet.state_dict()), shapes(weights), "these weights")
    unet.load_state_dict(weights, assign=True, strict=True)
    return unet.to(dtype).eval().requires_grad_(False)


def check_shapes(wanted: Shapes, given: Shapes, what: str) -> None:
    """Raises UserError when tensors are of another architecture: which differ, and what would do."""
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    reshaped = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    if not (missing or unknown or reshaped):
        return
    first = [f"{len(missing)} missing, the first {missing[0]}"] if missing else []
    first += [f"{len(unknown)} unknown, the first {unknown[0]}"] if unknown else []
    if reshaped:
        name = reshaped[0]
        first.append(f"{len(reshaped)} of another shape, the first {name}, {given[name]} for {wanted[name]}")
    raise UserError(
        f"{what}: of another architecture than student.rule gives for this teacher ({'; '.join(first)}). "
        f"Give the rule and teacher they were trained with, or another paths.run."
    )


def load_unet(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net of an exported student (its `unet` folder), of whichever class it is; safetensors only.

    Raises UserError for a class that is not a student's.
    """
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name not in UNETS:
        raise UserError(f"{folder}/config.json: is a {name}, a student's U-Net is one of {', '.join(UNETS)}")
    return UNETS[name].from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()


def load_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline of a diffusers folder, a SLIM student's included."""
    family = pipeline_class(folder)
    rest = family.from_pretrained(folder, unet=None, dtype=dtype, use_safetensors=True, **FAMILIES[family])
    return with_parts(rest, unet=load_unet(folder / "unet", dtype))


def export_student(
    folder: Path, unet: UNet2DConditionModel, teacher: Path, card: str, dtype: torch.dtype = torch.float32
) -> None:
    """Fills `folder` with the pipeline (the student's U-Net, every other part from the teacher's folder) and a card."""
    family = pipeline_class(teacher)
    parts = family.from_pretrained(teacher, unet=unet.to(dtype), dtype=dtype, use_safetensors=True, **FAMILIES[family])
    parts.save_pretrained(folder, safe_serialization=True)
    for path in folder.glob("*/*.json"):  # diffusers notes where a part was loaded from: no path of this machine
        settings = json.loads(path.read_text())
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(card)
