"""The condition of a U-Net: a dictionary of tensors that it takes in addition to x_t and t.

Keys are diffusers' own. `encoder_hidden_states` [B, L, width] is always present. SDXL adds `text_embeds` [B, P] (the
pooled text embedding) and `time_ids` [B, 6] (original size, crop and target size, in pixels).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Condition = dict[str, Tensor]

TIME_IDS = 6  # SDXL's micro-conditions: original (height, width), crop (top, left), target (height, width)


def denoise(unet: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """Returns the U-Net's prediction [B, C, h, w], whatever its prediction type.

    noised: x_t [B, C, h, w]. timesteps: t [B].
    """
    added = {name: value for name, value in condition.items() if name != "encoder_hidden_states"}
    text = condition["encoder_hidden_states"]
    return unet(noised, timesteps, text, added_cond_kwargs=added or None, return_dict=False)[0]


def cast(condition: Condition, dtype: torch.dtype) -> Condition:
    """Converts a condition to the network's compute dtype. `time_ids` stay in fp32, where they are exact."""
    return {name: value if name == "time_ids" else value.to(dtype) for name, value in condition.items()}


def blank_condition(
    unet: Mapping[str, Any], batch: int, tokens: int = 77, dtype: torch.dtype | None = None
) -> Condition:
    """Returns a condition of zeros for a U-Net of this configuration, on the current default device.

    batch: B. tokens: L, the length of the captions. The shapes are those of the module's docstring.
    """
    blank = {"encoder_hidden_states": torch.zeros(batch, tokens, unet["cross_attention_dim"], dtype=dtype)}
    if unet.get("addition_embed_type") == "text_time":
        sizes = TIME_IDS * unet["addition_time_embed_dim"]
        pooled = unet["projection_class_embeddings_input_dim"] - sizes
        blank["text_embeds"] = torch.zeros(batch, pooled, dtype=dtype)
        blank["time_ids"] = torch.zeros(batch, TIME_IDS)
    return blank


def blank_forward(unet: Any, batch: int = 1, tokens: int = 77, dtype: torch.dtype | None = None) -> Tensor:
    """Runs a forward pass on zeros and returns the prediction [B, C, h, w].

    Used with meta or fake tensors to find out the shapes, operations or saved tensors of a forward pass.
    """
    config = unet.config
    noised = torch.zeros(batch, config.in_channels, config.sample_size, config.sample_size, dtype=dtype)
    return denoise(unet, noised, torch.zeros(batch), blank_condition(config, batch, tokens, dtype))
