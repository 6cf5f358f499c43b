"""PixArt-alpha and PixArt-Sigma: a transformer on image tokens that attends to T5's hidden states.

Its condition has the keys of diffusers: `encoder_hidden_states` [B, L, width] and `encoder_attention_mask` [B, L], 1
for the tokens of the caption. PixArt-alpha at 1,024 pixels adds `resolution` [B, 2] (height, width in pixels) and
`aspect_ratio` [B, 1].
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from randcond.model_zoo.families.base.family import Condition, DenoiserConfig, Stack, TextPart
from randcond.model_zoo.families.base.transformer import Transformer, block_names, text_mask
from randcond.model_zoo.families.faults.pixart import FIRST_CLASS, configuration_faults, has_sizes

_TEXT = ("encoder_hidden_states", "encoder_attention_mask")


def lowered(tokenizer: Any, caption: str) -> str:
    """Returns a caption as the pipelines tokenize it.

    >>> lowered(None, " A Red Cat ")
    'a red cat'
    """
    return caption.lower().strip()


class PixArt(Transformer):
    """The family of PixArt-alpha and PixArt-Sigma."""

    name = "pixart"
    model = PixArtTransformer2DModel
    pipelines: ClassVar = {PixArtSigmaPipeline: {}, PixArtAlphaPipeline: {}}
    # Cleaned captions depend on which packages are installed. Bins of resolutions replace the one that is asked for.
    call_options: ClassVar = {"clean_caption": False, "use_resolution_binning": False}
    classes: ClassVar = {
        "transformer": ("PixArtTransformer2DModel", FIRST_CLASS),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    }
    text = (TextPart("text_encoder", "tokenizer", "token_ids", is_open=True, prepare=lowered),)
    tokens = 300
    guidance = 4.5
    masked = _TEXT
    exact = frozenset({"encoder_attention_mask"})
    checkpointed = (BasicTransformerBlock,)

    def config_of(self, network: Any) -> DenoiserConfig:
        """Leaves out what only the class of the published folders takes."""
        taken = inspect.signature(self.model.__init__).parameters
        return {key: value for key, value in super().config_of(network).items() if key in taken}

    def parts(self, index: Mapping[str, Any]) -> list[str]:
        return list(self.classes)

    def encode(
        self, pipe: Any, ids: list[Tensor], null: Tensor | None, pixels: tuple[int, int], text_tokens: int | None
    ) -> Condition:
        """Null captions are the encoding of "", as in the pipeline."""
        mask = text_mask(ids[0], pipe.tokenizer.pad_token_id)  # [B, L]
        hidden = pipe.text_encoder(ids[0], attention_mask=mask)[0]  # [B, L, width]
        condition = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
        if pipe.transformer.use_additional_conditions:
            height, width = pixels
            one = hidden.new_ones(len(hidden), 1)  # scaled, because a copy to a GPU waits for all queued work
            condition |= {"resolution": torch.cat([height * one, width * one], 1), "aspect_ratio": height / width * one}
        return condition

    def denoise(self, network: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Drops the second half of the channels, which predicts the variance."""
        added = {key: condition.get(key) for key in ("resolution", "aspect_ratio")}
        text = {key: condition[key] for key in _TEXT}
        out = network(noised, timestep=timesteps, **text, added_cond_kwargs=added, return_dict=False)[0]
        return out[:, : noised.shape[1]]

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

    def stack(self, config: Mapping[str, Any]) -> Stack:
        names = block_names(config["num_layers"])
        return Stack(names, tuple((name,) for name in names), (len(names),))

    def with_blocks(self, config: Mapping[str, Any], kept: Sequence[int]) -> DenoiserConfig:
        return {**config, "num_layers": len(kept)}

    def with_heads(self, config: Mapping[str, Any], heads: int) -> DenoiserConfig:
        width = heads * config["attention_head_dim"]
        return {**config, "num_attention_heads": heads, "cross_attention_dim": width}

    def faults(self, folder: Path, parts: list[str]) -> Iterator[str]:
        return configuration_faults(self, folder, parts)

    def tag(self, pipeline: type[DiffusionPipeline]) -> str:
        return "pixart-alpha" if pipeline is PixArtAlphaPipeline else "pixart-sigma"
