"""Configurations of a teacher's networks, without its weights.

In: the name of a published teacher, a hub id, or a diffusers folder. Out: the configurations of its U-Net, text
encoders and VAE. The published teachers' configurations are stored here, so that planning needs no download.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextConfig

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.configuration import UNetConfig, complete_config
from randcond.model_zoo.diffusers_folder import loading
from randcond.model_zoo.hub import unet_config

_CROSS_ATTENTION = "CrossAttnDownBlock2D"
_SD: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (_CROSS_ATTENTION, _CROSS_ATTENTION, _CROSS_ATTENTION, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # diffusers' name for the number of heads
}

LAYOUTS: dict[str, dict[str, Any]] = {
    "sd-v1-4": _SD,
    "sd-v2-1": {
        **_SD,
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", _CROSS_ATTENTION, _CROSS_ATTENTION),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}

_CLIP_L = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
# Arguments of CLIPTextConfig. SDXL's second encoder has a projection.
TEXT_ENCODERS: dict[str, list[dict[str, Any]]] = {
    "sd-v1-4": [_CLIP_L],
    "sd-v2-1": [{"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}],
    "sdxl": [
        _CLIP_L,
        {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu"},
    ],
}
VOCABULARY = 49408  # number of CLIP's tokens

# Arguments of AutoencoderKL. The VAEs of the three teachers differ only in weights and scaling factor.
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}

HUB = {  # hub id -> layout
    "CompVis/stable-diffusion-v1-4": "sd-v1-4",
    "stabilityai/stable-diffusion-2-1": "sd-v2-1",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}


def text_config(sizes: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of CLIPTextConfig for a text encoder of the given sizes."""
    width = sizes["hidden_size"]
    return {"vocab_size": VOCABULARY, "intermediate_size": 4 * width, "projection_dim": width, **sizes}


@dataclass(frozen=True)
class Networks:
    """The configurations of a teacher's networks."""

    unet: UNetConfig
    text_encoders: list[dict[str, Any]]  # arguments of CLIPTextConfig; one, or SDXL's two
    vae: dict[str, Any]  # arguments of AutoencoderKL


def layout_of(name: Path | str) -> str | None:
    """Returns the published layout for a layout name or hub id, or None if there is none."""
    layout = HUB.get(str(name), str(name))
    return layout if layout in LAYOUTS else None


def unet_of(name: Path | str) -> UNetConfig:
    """Returns a teacher's complete U-Net configuration, given a layout name, a folder or a hub id.

    Raises UserError listing the layout names if there is no such teacher.
    """
    if layout := layout_of(name):
        return complete_config(LAYOUTS[layout])
    try:
        return unet_config(name)
    except UserError as error:
        raise UserError(f"teacher: {name} is none of {', '.join(LAYOUTS)}; {error}") from None


def networks_of(name: Path | str) -> Networks:
    """Returns the configurations of a teacher's networks, given a layout name, a folder or a hub id.

    Raises UserError listing the layout names if there is no such teacher.
    """
    unet = unet_of(name)
    if layout := layout_of(name):
        return Networks(unet, [text_config(sizes) for sizes in TEXT_ENCODERS[layout]], VAE)
    with loading(name):
        parts = DiffusionPipeline.load_config(str(name))
        text = [part for part in ("text_encoder", "text_encoder_2") if part in parts]
        configs = [CLIPTextConfig.from_pretrained(str(name), subfolder=part).to_dict() for part in text]
        return Networks(unet, configs, dict(AutoencoderKL.load_config(str(name), subfolder="vae")))
