"""Exports a trained student as an ordinary diffusers folder: its U-Net with the teacher's VAE, text encoder, sampler.

Loads with `StableDiffusionPipeline.from_pretrained`, nothing of ours imported; safetensors only.
"""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from randcond.model_zoo.teacher import Teacher


def unet_weights(wrapped: dict[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's own tensors out of the trained module's (projectors stay behind)."""
    return {name.removeprefix("unet."): tensor for name, tensor in wrapped.items() if name.startswith("unet.")}


def student_unet(like: UNet2DConditionModel, weights: dict[str, Tensor], dtype: torch.dtype) -> UNet2DConditionModel:
    """A U-Net of the same architecture with these weights [name -> fp32 tensor], in eval mode."""
    config = {key: value for key, value in like.config.items() if not key.startswith("_")}  # no path of this machine
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict(weights, assign=True, strict=True)
    return unet.to(dtype).eval().requires_grad_(False)


def export_student(folder: Path, unet: UNet2DConditionModel, teacher: Teacher, card: str) -> None:
    """Fills `folder` with the pipeline and its model card."""
    teacher.pipeline("teacher", unet).save_pretrained(folder, safe_serialization=True)
    for path in folder.glob("*/*.json"):  # diffusers notes where a part was loaded from: no path of this machine
        settings = json.loads(path.read_text())
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(card)
