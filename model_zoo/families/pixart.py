"""PixArt-alpha and PixArt-Sigma: a transformer on image tokens that attends to T5's hidden states.

Its condition has the keys of diffusers: `encoder_hidden_states` [B, L, width] and `encoder_attention_mask` [B, L], 1
for the tokens of the caption. PixArt-alpha at 1,024 pixels adds `resolution` [B, 2] (height, width in pixels) and
`aspect_ratio` [B, 1].
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from randcond.model_zoo.families.family import Condition, DenoiserConfig, Family, Stack, TextPart
from randcond.model_zoo.families.pixart_faults import configuration_faults

_TEXT = ("encoder_hidden_states", "encoder_attention_mask")


def lowered(caption: str) -> str:
    """Returns a caption as the pipelines tokenize it.

    >>> lowered(" A Red Cat ")
    'a red cat'
    """
    return caption.lower().strip()


class PixArt(Family):
    """The family of PixArt-alpha and PixArt-Sigma."""

    name = "pixart"
    part = "transformer"
    model = PixArtTransformer2DModel
    pipelines: ClassVar = {PixArtSigmaPipeline: {}, PixArtAlphaPipeline: {}}
    # Cleaned captions depend on which packages are installed. Bins of resolutions replace the one that is asked for.
    call_options: ClassVar = {"clean_caption": False, "use_resolution_binning": False}
    classes: ClassVar = {
        "transformer": ("PixArtTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    }
    text = (TextPart("text_encoder", "tokenizer", "token_ids", is_open=True, prepare=lowered),)
    tokens = 300
    exact = frozenset({"encoder_attention_mask"})
    checkpointed = (BasicTransformerBlock,)

    def parts(self, index: Mapping[str, Any]) -> list[str]:
        return list(self.classes)

    def encode(
        self, pipe: Any, ids: list[Tensor], null: Tensor | None, pixels: tuple[int, int], text_tokens: int | None
    ) -> Condition:
        """Null captions are the encoding of "", as in the pipeline."""
        mask = (ids[0] != pipe.tokenizer.pad_token_id).long()  # [B, L]
        hidden = pipe.text_encoder(ids[0], attention_mask=mask)[0]  # [B, L, width]
        condition = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
        if pipe.transformer.use_additional_conditions:
            height, width = pixels
            size = hidden.new_tensor([pixels]).expand(len(hidden), 2)
            condition |= {"resolution": size, "aspect_ratio": hidden.new_full((len(hidden), 1), height / width)}
        return condition

    def denoise(self, network: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Drops the second half of the channels, which predicts the variance."""
        added = {key: condition.get(key) for key in ("resolution", "aspect_ratio")}
        text = {key: condition[key] for key in _TEXT}
        out = network(noised, timestep=timesteps, **text, added_cond_kwargs=added, return_dict=False)[0]
        return out[:, : noised.shape[1]]

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def blank_condition(
        self, config: Mapping[str, Any], batch: int, tokens: int, dtype: torch.dtype | None
    ) -> Condition:
        blank = {
            "encoder_hidden_states": torch.zeros(batch, tokens, config["caption_channels"], dtype=dtype),
            "encoder_attention_mask": torch.ones(batch, tokens, dtype=torch.long),
        }
        if has_sizes(config):
            blank["resolution"] = torch.zeros(batch, 2, dtype=dtype)
            blank["aspect_ratio"] = torch.zeros(batch, 1, dtype=dtype)
        return blank

    def blocks(self, network: Any) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def stack(self, config: Mapping[str, Any]) -> Stack:
        names = tuple(f"transformer_blocks.{number}" for number in range(config["num_layers"]))
        return Stack(names, tuple((name,) for name in names), last_stays=False)

    def with_blocks(self, config: Mapping[str, Any], kept: Sequence[int]) -> DenoiserConfig:
        return {**config, "num_layers": len(kept)}

    def with_heads(self, config: Mapping[str, Any], heads: int) -> DenoiserConfig:
        width = heads * config["attention_head_dim"]
        return {**config, "num_attention_heads": heads, "cross_attention_dim": width}

    def first_layer(self, network: Any) -> nn.Module:
        return network.pos_embed

    def faults(self, folder: Path, parts: list[str]) -> Iterator[str]:
        return configuration_faults(self, folder, parts)

    def default_rule(self, config: Mapping[str, Any]) -> str:
        return f"depth-{config['num_layers'] // 2}"

    def tag(self, pipeline: type[DiffusionPipeline]) -> str:
        return "pixart-alpha" if pipeline is PixArtAlphaPipeline else "pixart-sigma"


def has_sizes(config: Mapping[str, Any]) -> bool:
    """Returns True if the transformer is given the image's resolution and aspect ratio."""
    given = config["use_additional_conditions"]
    return config["sample_size"] == 128 if given is None else bool(given)
