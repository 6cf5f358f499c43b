"""Makes transformer teachers with random weights at the published sizes, as diffusers folders in bf16.

Their tokenizers know a few words only. The text has its full length all the same, so a step costs what it would.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from randcond.model_zoo.checkpoints.layouts import LANGUAGE_MODELS, LAYOUTS, TEXT_ENCODERS, VAE, VAES, text_config
from tests.support import flow_teachers

SCALING: dict[str, dict[str, Any]] = {
    "pixart-sigma-512": {"scaling_factor": 0.13025},
    "sd35-medium": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
}


def build(layout: str, folder: Path, tiny: bool, where: torch.device) -> Path:
    """Saves a teacher of the layout (pixart-sigma-512 or sd35-medium); returns `folder`.

    `tiny`: a small one in fp32. `where`: the device that draws the weights.
    """
    make = {"pixart-sigma-512": flow_teachers.pixart, "sd35-medium": flow_teachers.sd3}[layout]
    return make(folder, **({} if tiny else {"networks": networks(layout, where)}))


def networks(layout: str, where: torch.device) -> dict[str, Any]:
    """Returns the parts of the layout's pipeline that have weights, at full size in bf16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with where:
            sizes = LAYOUTS[layout]
            t5 = T5EncoderModel(T5Config(**LANGUAGE_MODELS[layout][1]))
            parts: dict[str, Any] = {"vae": AutoencoderKL(**{**VAES.get(layout, VAE), **SCALING[layout]})}
            if layout == "sd35-medium":
                configs = [CLIPTextConfig(**text_config(each)) for each in TEXT_ENCODERS[layout]]
                clips = map(CLIPTextModelWithProjection, configs)
                parts |= dict(zip(("text_encoder", "text_encoder_2"), clips, strict=True))
                return parts | {"text_encoder_3": t5, "transformer": SD3Transformer2DModel(**sizes)}
            return parts | {"text_encoder": t5, "transformer": PixArtTransformer2DModel(**sizes)}
    finally:
        torch.set_default_dtype(torch.float32)
