"""Any text-to-image pipeline that diffusers can load, ready to draw: teachers, exported students, other systems.

In: a diffusers folder or a hub id, a sampler's name. Out: a frozen pipeline; `model_zoo/sampler.py` draws with it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image, UNet2DConditionModel
from torch import nn

from randcond.launch.errors import UserError
from randcond.model_zoo.cost.flops import unet_cost
from randcond.model_zoo.denoiser.configuration import plain_config
from randcond.model_zoo.diffusers_folder import DTYPES, FAMILIES, check_weights, part_dtypes, with_parts
from randcond.model_zoo.export import load_unet
from randcond.model_zoo.hub import local_folder
from randcond.model_zoo.sampler import build_sampler


def load_frozen_pipeline(path: Path | str, dtype: str, device: torch.device | str, sampler: str = "teacher") -> Any:
    """The pipeline of a folder or hub id, frozen, on `device`, with the named sampler; safetensors only.

    Raises UserError when it is not there, ValueError naming the folder when it is no text-to-image pipeline.
    """
    folder = local_folder(path)
    if not (folder / "vae" / "config.json").is_file():
        raise UserError(f"{folder}: no text-to-image pipeline whose latents are decoded by an autoencoder (vae/)")
    name = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    family = next((family for family in FAMILIES if family.__name__ == name), None)
    check_weights(folder)
    options = {"dtype": part_dtypes(folder, dtype), "use_safetensors": True}
    if family:  # part by part: the U-Net may be of a class that diffusers does not know (SLIM)
        pipe = family.from_pretrained(folder, unet=None, **options, **FAMILIES[family])
        pipe = with_parts(pipe, unet=load_unet(folder / "unet", DTYPES[dtype]))
    else:
        try:
            pipe = AutoPipelineForText2Image.from_pretrained(folder, **options)
        except ValueError as error:
            raise UserError(f"{folder}: a {name}, which is no text-to-image pipeline to diffusers ({error})") from None
    for network in pipe.components.values():
        if isinstance(network, nn.Module):
            network.to(device).eval().requires_grad_(False)
    pipe.scheduler = build_sampler(sampler, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_size(pipe: Any) -> dict[str, int]:
    """What a system is made of: `unet` (parameters of the denoiser), `parameters` (with the text encoders and the VAE's
    decoder, as Table 4 counts them) and, of a U-Net, `macs` of one step (Table A).
    """
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    texts = [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None]
    counted = {part: sum(p.numel() for p in part.parameters()) for part in (denoiser, pipe.vae.decoder, *texts)}
    size = {"unet": counted[denoiser], "parameters": sum(counted.values())}
    if isinstance(denoiser, UNet2DConditionModel):
        size["macs"] = unet_cost(type(denoiser), plain_config(dict(denoiser.config))).macs
    return size
