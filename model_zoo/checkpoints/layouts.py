"""The configurations of the published teachers, so that planning and importing need no download."""

from pathlib import Path
from typing import Any

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


def layout_of(name: Path | str) -> str | None:
    """Returns the published layout for a layout name or hub id, or None if there is none."""
    layout = HUB.get(str(name), str(name))
    return layout if layout in LAYOUTS else None
