"""What a text-conditioned U-Net is shown beside x_t and t, for every family the same: a dictionary of tensors.

Keys are diffusers' own: `encoder_hidden_states` [B, L, width] always; `text_embeds` [B, P] (the pooled embedding) and
`time_ids` [B, 6] (original size, crop, target size) where the U-Net asks for them (SDXL).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Condition = dict[str, Tensor]

TIME_IDS = 6  # SDXL's micro-conditions: original (height, width), crop (top, left), target (height, width)


def denoise(unet: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """The U-Net's prediction at (x_t [B, C, h, w], t [B], condition), whatever it predicts -> [B, C, h, w]."""
    added = {name: value for name, value in condition.items() if name != "encoder_hidden_states"}
    text = condition["encoder_hidden_states"]
    return unet(noised, timesteps, text, added_cond_kwargs=added or None, return_dict=False)[0]


def cast(condition: Condition, dtype: torch.dtype) -> Condition:
    """The condition in the network's compute type; sizes (`time_ids`) stay exact in fp32."""
    return {name: value if name == "time_ids" else value.to(dtype) for name, value in condition.items()}


def blank_condition(
    unet: Mapping[str, Any], batch: int, tokens: int = 77, dtype: torch.dtype | None = None
) -> Condition:
    """Zeros in the shapes a U-Net of this configuration takes, on the current default device."""
    blank = {"encoder_hidden_states": torch.zeros(batch, tokens, unet["cross_attention_dim"], dtype=dtype)}
    if unet.get("addition_embed_type") == "text_time":
        sizes = TIME_IDS * unet["addition_time_embed_dim"]
        pooled = unet["projection_class_embeddings_input_dim"] - sizes
        blank["text_embeds"] = torch.zeros(batch, pooled, dtype=dtype)
        blank["time_ids"] = torch.zeros(batch, TIME_IDS)
    return blank


def blank_forward(unet: Any, batch: int = 1, tokens: int = 77, dtype: torch.dtype | None = None) -> Tensor:
    """A forward on zeros, for those who want its shapes, operations or saved tensors (meta or fake tensors)."""
    config = unet.config
    noised = torch.zeros(batch, config.in_channels, config.sample_size, config.sample_size, dtype=dtype)
    return denoise(unet, noised, torch.zeros(batch), blank_condition(config, batch, tokens, dtype))
