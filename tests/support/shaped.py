"""Makes teachers with random weights in the published layouts as diffusers folders, tiny or full size.

`python -m tests.support.shaped LAYOUT FOLDER` saves a teacher at full size in bf16. The GPU draws its weights, if there
is one.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from randcond.launch.runtime.ranks import device
from randcond.model_zoo.checkpoints.layouts import LAYOUTS, TEXT_ENCODERS, VAE, text_config
from randcond.model_zoo.importing.clip_tokenizer import MERGES, clip_tokenizer

CPU = torch.device("cpu")
FEW_MERGES = 1000
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
# The settings in scheduler_config.json of the published checkpoints.
SCHEDULERS = {
    "sd-v1-4": lambda: PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
    "sd-v2-1": lambda: DDIMScheduler(
        **BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ),
    "sdxl": lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
}
SCALING = {"sd-v1-4": 0.18215, "sd-v2-1": 0.18215, "sdxl": 0.13025}


def unet_config(layout: str, tiny: bool) -> dict[str, Any]:
    """Returns the configuration of the layout's U-Net. `tiny`: the same blocks with a tenth of the width or less."""
    config = dict(LAYOUTS[layout])
    if tiny:
        stages = len(config["block_out_channels"])
        config |= {"block_out_channels": (32, 64, 96, 96)[:stages], "norm_num_groups": 8, "sample_size": 16}
        config["attention_head_dim"] = 4 if layout == "sd-v1-4" else (2, 4, 6, 6)[:stages]
        config["cross_attention_dim"] = sum(encoder["hidden_size"] for encoder in text_sizes(layout, tiny))
    if tiny and layout == "sdxl":
        config |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 24}
    return config


def text_sizes(layout: str, tiny: bool) -> list[dict[str, Any]]:
    """Returns the sizes of the layout's text encoders."""
    if not tiny:
        return TEXT_ENCODERS[layout]
    small = {"num_hidden_layers": 3, "num_attention_heads": 2}
    return [{**full, **small, "hidden_size": 16 + 8 * number} for number, full in enumerate(TEXT_ENCODERS[layout])]


def build(
    layout: str, folder: Path, tiny: bool = True, seed: int = 0, unet: dict[str, Any] | None = None,
    where: torch.device = CPU, merges: int | None = None,
) -> Path:  # fmt: skip
    """Saves a teacher of the layout with random weights, tiny in fp32 or full size in bf16; returns `folder`.

    `unet`: changes to the configuration of its U-Net. `merges`: of its tokenizers; None: all of CLIP's, or a
    few for a tiny teacher, because a tokenizer takes longer to load than tiny networks.
    `where`: the device that draws the weights. A GPU is much faster, but draws other weights.
    """
    small = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8} if tiny else {}
    sizes = {**unet_config(layout, tiny), **(unet or {})}
    side = sizes["sample_size"] * 8
    pads = {"sd-v1-4": [None], "sd-v2-1": ["!"], "sdxl": [None, "!"]}[layout]
    tokenizers = [clip_tokenizer(pad, merges or (FEW_MERGES if tiny else MERGES)) for pad in pads]
    words = {"vocab_size": len(tokenizers[0]), "eos_token_id": tokenizers[0].eos_token_id}
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
    try:
        with where:
            encoders = []
            for number, text in enumerate(text_sizes(layout, tiny)):
                config = CLIPTextConfig(**{**text_config(text), **words})
                encoders.append((CLIPTextModelWithProjection if number else CLIPTextModel)(config).eval())
            vae = AutoencoderKL(**{**VAE, **small}, scaling_factor=SCALING[layout], sample_size=side)
            denoiser = UNet2DConditionModel(**sizes)
    finally:
        torch.set_default_dtype(torch.float32)
    parts = {"vae": vae, "unet": denoiser, "scheduler": SCHEDULERS[layout](), "text_encoder": encoders[0]}
    if layout == "sdxl":
        pipe = StableDiffusionXLPipeline(
            **parts,
            tokenizer=tokenizers[0],
            text_encoder_2=encoders[1],
            tokenizer_2=tokenizers[1],
            add_watermarker=False,
        )
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, tokenizer=tokenizers[0], **none)
    pipe.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]), tiny=False, where=device())
