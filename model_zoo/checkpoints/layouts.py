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

LAYOUTS |= {
    "pixart-sigma": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "use_additional_conditions": False,
    },
    "sd35-medium": {
        "sample_size": 128,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "num_attention_heads": 24,
        "attention_head_dim": 64,
        "caption_projection_dim": 1536,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
}
LAYOUTS["pixart-sigma-512"] = {**LAYOUTS["pixart-sigma"], "sample_size": 64}
LAYOUTS["flux2-klein-4b"] = {
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
UNET = "UNet2DConditionModel"
CLASSES = {  # others: UNET
    "pixart-sigma": "PixArtTransformer2DModel",
    "pixart-sigma-512": "PixArtTransformer2DModel",
    "sd35-medium": "SD3Transformer2DModel",
    "flux2-klein-4b": "Flux2Transformer2DModel",
}

_CLIP_L = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
_CLIP_G = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu"}
_T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_CLIP_H = {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}
_QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
# The CLIP text encoders: arguments of CLIPTextConfig. SDXL's and SD 3's second one has a projection.
TEXT_ENCODERS: dict[str, list[dict[str, Any]]] = {
    "sd-v1-4": [_CLIP_L],
    "sd-v2-1": [_CLIP_H],
    "sdxl": [_CLIP_L, _CLIP_G],
    "sd35-medium": [_CLIP_L, _CLIP_G],
}
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # the text encoder after them: class, its configuration
    "pixart-sigma": ("T5EncoderModel", _T5_XXL),
    "pixart-sigma-512": ("T5EncoderModel", _T5_XXL),
    "sd35-medium": ("T5EncoderModel", _T5_XXL),
    "flux2-klein-4b": ("Qwen3ForCausalLM", _QWEN3_4B),
}
VOCABULARY = 49408  # number of CLIP's tokens

# Arguments of the family's VAE. They differ in weights, scaling factor and number of channels.
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
VAES: dict[str, dict[str, Any]] = {
    "sd35-medium": {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "flux2-klein-4b": {**VAE, "latent_channels": 32},
}  # others: VAE

HUB = {  # hub id -> layout
    "CompVis/stable-diffusion-v1-4": "sd-v1-4",
    "stabilityai/stable-diffusion-2-1": "sd-v2-1",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": "pixart-sigma",
    "PixArt-alpha/PixArt-Sigma-XL-2-512-MS": "pixart-sigma-512",
    "stabilityai/stable-diffusion-3.5-medium": "sd35-medium",
    "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein-4b",
}


def text_config(sizes: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of CLIPTextConfig for a text encoder of the given sizes."""
    width = sizes["hidden_size"]
    return {"vocab_size": VOCABULARY, "intermediate_size": 4 * width, "projection_dim": width, **sizes}


def layout_of(name: Path | str) -> str | None:
    """Returns the published layout for a layout name or hub id, or None if there is none."""
    layout = HUB.get(str(name), str(name))
    return layout if layout in LAYOUTS else None
