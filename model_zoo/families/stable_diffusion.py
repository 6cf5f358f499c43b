"""Stable Diffusion 1.x, 2.x and SDXL: a U-Net that attends to CLIP's hidden states.

Its condition has the keys of diffusers. `encoder_hidden_states` [B, L, width] is always present. SDXL adds
`text_embeds` [B, P] (the pooled text embedding) and `time_ids` [B, 6] (original size, crop and target size, in pixels).
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from randcond.model_zoo.families.base.family import Condition, Family, TextPart
from randcond.model_zoo.families.faults.stable_diffusion import configuration_faults

TIME_IDS = 6  # length of SDXL's micro-conditions: original (height, width), crop (top, left), target (height, width)


@cache
def _time_ids(pixels: tuple[int, int], device: torch.device) -> Tensor:
    """Returns SDXL's time_ids [6] of an uncropped image. Cached, because a copy to a GPU waits for all queued work."""
    return torch.tensor([*pixels, 0, 0, *pixels], dtype=torch.float32, device=device)


class StableDiffusion(Family):
    """The family of the paper's teachers."""

    name = "stable-diffusion"
    part = "unet"
    model = UNet2DConditionModel
    pipelines: ClassVar = {
        StableDiffusionPipeline: {"safety_checker": None, "requires_safety_checker": False},
        StableDiffusionXLPipeline: {"add_watermarker": False},
    }
    kept_options = ("force_zeros_for_empty_prompt",)
    classes: ClassVar = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }
    text = (
        TextPart("text_encoder", "tokenizer", "token_ids"),
        TextPart("text_encoder_2", "tokenizer_2", "token_ids_2"),  # only SDXL has it
    )
    tokens = 77
    exact = frozenset({"time_ids"})
    chooses_attention = True
    checkpointed = (ResnetBlock2D, BasicTransformerBlock)

    def parts(self, index: Mapping[str, Any]) -> list[str]:
        is_xl = index["_class_name"] == StableDiffusionXLPipeline.__name__
        return [part for part in self.classes if is_xl or not part.endswith("_2")]

    def encode(
        self, pipe: Any, ids: list[Tensor], null: Tensor | None, pixels: tuple[int, int], text_tokens: int | None
    ) -> Condition:
        """Returns the hidden states of CLIP's last layer; for SDXL, the penultimate ones of both, concatenated.

        The pooled embedding is the second encoder's. SDXL's null captions are zeros (`force_zeros_for_empty_prompt`),
        unless its folder says otherwise.
        """
        hidden, pooled = [], None
        is_xl = pipe.unet.config.addition_embed_type == "text_time"
        for part, tokens in zip(self.text_parts(pipe), ids, strict=True):
            out = getattr(pipe, part.encoder)(tokens, output_hidden_states=is_xl)
            hidden.append(out.hidden_states[-2] if is_xl else out.last_hidden_state)
            pooled = getattr(out, "text_embeds", None)
        condition = {"encoder_hidden_states": torch.cat(hidden, dim=-1)}  # [B, L, width]
        if is_xl:
            assert pooled is not None
            condition |= {"text_embeds": pooled, "time_ids": _time_ids(pixels, pooled.device).repeat(len(pooled), 1)}
        if null is not None and pipe.config.get("force_zeros_for_empty_prompt", False):
            keep = ~null
            condition["encoder_hidden_states"] = condition["encoder_hidden_states"] * keep[:, None, None]
            condition["text_embeds"] = condition["text_embeds"] * keep[:, None]
        return condition

    def denoise(self, network: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        added = {name: value for name, value in condition.items() if name != "encoder_hidden_states"}
        text = condition["encoder_hidden_states"]
        return network(noised, timesteps, text, added_cond_kwargs=added or None, return_dict=False)[0]

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def blank_condition(
        self, config: Mapping[str, Any], batch: int, tokens: int, dtype: torch.dtype | None
    ) -> Condition:
        blank = {"encoder_hidden_states": torch.zeros(batch, tokens, config["cross_attention_dim"], dtype=dtype)}
        if config.get("addition_embed_type") == "text_time":
            sizes = TIME_IDS * config["addition_time_embed_dim"]
            pooled = config["projection_class_embeddings_input_dim"] - sizes
            blank["text_embeds"] = torch.zeros(batch, pooled, dtype=dtype)
            blank["time_ids"] = torch.zeros(batch, TIME_IDS)
        return blank

    def blocks(self, network: Any) -> list[nn.Module]:
        """Returns the down, mid and up blocks."""
        parts = (*network.down_blocks, network.mid_block, *network.up_blocks)
        return [block for block in parts if block is not None]

    def first_layer(self, network: Any) -> nn.Module:
        return network.conv_in

    def faults(self, folder: Path, parts: list[str]) -> Iterator[str]:
        return configuration_faults(self, folder, parts)

    def default_rule(self, config: Mapping[str, Any]) -> str:
        """KOALA's for SDXL, the paper's B-Base for others."""
        return "koala-700m" if config.get("addition_embed_type") == "text_time" else "block-base"

    def tag(self, pipeline: type[DiffusionPipeline]) -> str:
        return "stable-diffusion-xl" if pipeline is StableDiffusionXLPipeline else "stable-diffusion"
