"""Stable Diffusion 3 and 3.5: a transformer on image and text tokens together (MMDiT), trained by flow matching.

Its condition has the keys of diffusers: `encoder_hidden_states` [B, L + N, width] holds the hidden states of two CLIPs,
side by side and padded with zeros, and then T5's; `pooled_projections` [B, P] the pooled embeddings of both CLIPs.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from randcond.model_zoo.families.base.family import Condition, DenoiserConfig, Stack, TextPart, default_length
from randcond.model_zoo.families.base.transformer import Transformer, block_names
from randcond.model_zoo.families.faults.stable_diffusion_3 import configuration_faults


class StableDiffusion3(Transformer):
    """The family of SD 3 and SD 3.5."""

    name = "stable-diffusion-3"
    model = SD3Transformer2DModel
    pipelines: ClassVar = {StableDiffusion3Pipeline: {}}
    classes: ClassVar = {
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_3": ("T5Tokenizer", "T5TokenizerFast"),
    }
    optional = ("text_encoder_3", "tokenizer_3")
    text = (
        TextPart("text_encoder", "tokenizer", "token_ids"),
        TextPart("text_encoder_2", "tokenizer_2", "token_ids_2"),
        TextPart("text_encoder_3", "tokenizer_3", "token_ids_3", is_open=True),
    )
    tokens = 77 + 256  # CLIP's, and the pipeline's default for T5
    guidance = 4.5
    most_tokens = 512
    flow = True
    checkpointed = (JointTransformerBlock,)

    def parts(self, index: Mapping[str, Any]) -> list[str]:
        """T5 may be left out."""
        has_t5 = index.get("text_encoder_3", [None])[0] is not None
        return [part for part in self.classes if has_t5 or not part.endswith("_3")]

    def encode(
        self, pipe: Any, ids: list[Tensor], null: Tensor | None, pixels: tuple[int, int], text_tokens: int | None
    ) -> Condition:
        """Null captions are the encoding of "", as in the pipeline."""
        clips = [
            encoder(tokens, output_hidden_states=True)
            for encoder, tokens in zip((pipe.text_encoder, pipe.text_encoder_2), ids, strict=False)
        ]
        hidden = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)  # [B, L, width of both]
        width = pipe.transformer.config.joint_attention_dim
        if pipe.text_encoder_3 is None:
            length = text_tokens or default_length(type(pipe)) or 0
            t5 = hidden.new_zeros(len(hidden), length, width)
        else:
            t5 = pipe.text_encoder_3(ids[2])[0]  # [B, N, width], unmasked
        text = functional.pad(hidden, (0, width - hidden.shape[-1]))
        return {
            "encoder_hidden_states": torch.cat([text, t5], dim=1),
            "pooled_projections": torch.cat([clip.text_embeds for clip in clips], dim=-1),
        }

    def text_length(self, lengths: Sequence[int]) -> int:
        """The CLIPs' text, side by side, and T5's after it. Without T5 there are zeros in its place."""
        return lengths[0] + lengths[2]

    def denoise(self, network: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return network(hidden_states=noised, timestep=timesteps, **condition, return_dict=False)[0]

    def blank_condition(
        self, config: Mapping[str, Any], batch: int, tokens: int, dtype: torch.dtype | None
    ) -> Condition:
        return {
            "encoder_hidden_states": torch.zeros(batch, tokens, config["joint_attention_dim"], dtype=dtype),
            "pooled_projections": torch.zeros(batch, config["pooled_projection_dim"], dtype=dtype),
        }

    def stack(self, config: Mapping[str, Any]) -> Stack:
        """A block returns (text, image). The last one returns no text."""
        names = block_names(config["num_layers"])
        both = tuple((f"{name}[1]", f"{name}[0]") for name in names[:-1])
        return Stack(names, (*both, (f"{names[-1]}[1]",)), (len(names),), last_stays=True)

    def with_blocks(self, config: Mapping[str, Any], kept: Sequence[int]) -> DenoiserConfig:
        """The list of the blocks with two attentions is renumbered."""
        dual = tuple(new for new, old in enumerate(kept) if old in config["dual_attention_layers"])
        return {**config, "num_layers": len(kept), "dual_attention_layers": dual}

    def with_heads(self, config: Mapping[str, Any], heads: int) -> DenoiserConfig:
        width = heads * config["attention_head_dim"]
        return {**config, "num_attention_heads": heads, "caption_projection_dim": width}

    def faults(self, folder: Path, parts: list[str]) -> Iterator[str]:
        return configuration_faults(self, folder, parts)

    def tag(self, pipeline: type[DiffusionPipeline]) -> str:
        return "stable-diffusion-3"
