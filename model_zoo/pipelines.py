"""Loads any text-to-image pipeline that diffusers supports: teachers, exported students, other systems.

In: a diffusers folder or hub id, and the name of a sampler. Out: a frozen pipeline, which `model_zoo/sampler.py` uses
to generate images.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image, UNet2DConditionModel

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import (
    DTYPES,
    FAMILIES,
    check_files,
    class_name,
    freeze,
    loading,
    part_dtypes,
    with_parts,
)
from randcond.model_zoo.checkpoints.hub import local_folder
from randcond.model_zoo.cost.flops import unet_cost
from randcond.model_zoo.denoiser.configuration import plain_config
from randcond.model_zoo.export import load_unet
from randcond.model_zoo.sampler import build_sampler


def load_frozen_pipeline(path: Path | str, dtype: str, device: torch.device | str, sampler: str = "teacher") -> Any:
    """Loads the pipeline of a folder or hub id, frozen, on `device`, with the named sampler; safetensors only.

    Raises UserError naming the folder if it is missing or is not a text-to-image pipeline with an autoencoder.
    """
    folder = local_folder(path)
    if not (folder / "vae" / "config.json").is_file():
        raise UserError(f"{folder}: vae/config.json is missing; expected a text-to-image pipeline with an autoencoder")
    name = class_name(folder / "model_index.json")
    family = next((family for family in FAMILIES if family.__name__ == name), None)
    check_files(folder)
    options = {"dtype": part_dtypes(folder, dtype), "use_safetensors": True}
    with loading(folder):
        if family:  # the U-Net is loaded separately: diffusers does not know the class of a SLIM U-Net
            pipe = family.from_pretrained(folder, unet=None, **options, **FAMILIES[family])
            pipe = with_parts(pipe, unet=load_unet(folder / "unet", DTYPES[dtype]))
        else:
            try:
                pipe = AutoPipelineForText2Image.from_pretrained(folder, **options)
            except ValueError as error:
                raise UserError(f"{folder}: diffusers has no text-to-image pipeline for {name} ({error})") from None
    freeze(pipe, device)
    pipe.scheduler = build_sampler(sampler, pipe.scheduler)
    return pipe


def pipeline_size(pipe: Any) -> dict[str, int]:
    """Returns the size of a pipeline by name.

    `unet`: number of parameters of the denoiser.
    `parameters`: number of parameters of the denoiser, the text encoders and the VAE's decoder, as in Table 4.
    `macs`: MACs of one denoising step, as in Table A. Present only if the denoiser is a U-Net.
    """
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    text_encoders = [
        part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None
    ]
    networks = (denoiser, pipe.vae.decoder, *text_encoders)
    counts = {network: sum(p.numel() for p in network.parameters()) for network in networks}
    size = {"unet": counts[denoiser], "parameters": sum(counts.values())}
    if isinstance(denoiser, UNet2DConditionModel):
        size["macs"] = unet_cost(type(denoiser), plain_config(dict(denoiser.config))).macs
    return size
