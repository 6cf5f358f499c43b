"""FLUX.2 klein: a transformer on image and text tokens, first in two streams and then in one, trained by flow matching.

Its latents are the VAE's in squares of 2 x 2, normalised by the VAE's batch norm: [B, 128, h, w] at 1/16 of the image's
sides. Its condition has one key: `encoder_hidden_states` [B, L, 3 D], the outputs of three Qwen3 layers side by side.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from randcond.model_zoo.families.base.family import Condition, DenoiserConfig, Stack, TextPart
from randcond.model_zoo.families.base.transformer import Transformer, block_names, text_mask
from randcond.model_zoo.families.faults.flux2 import TEXT_LAYERS, configuration_faults

_TEXT_DEPTH = TEXT_LAYERS[-1] + 1  # layers of Qwen3; one more, because the output of the last one is normalised
_SIDE = 64  # of the latents at 1,024 pixels, the pipeline's default


def chat(tokenizer: Any, caption: str) -> str:
    """Returns a caption as a message in Qwen3's chat template, as the pipeline tokenizes it."""
    message = [{"role": "user", "content": caption}]
    return str(
        tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )


def _places(height: int, width: int, text: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the places (time, row, column, number) of the image tokens [h * w, 4] and the text tokens [L, 4]."""
    zero, rows, columns, numbers = (torch.arange(n, device=device) for n in (1, height, width, text))
    return torch.cartesian_prod(zero, rows, columns, zero), torch.cartesian_prod(zero, zero, zero, numbers)


class _NoHead(nn.Module):
    """Stands in for a language model's head, whose logits no teacher needs. They would take 156 MB a caption."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns no logits: [B, L, 0]."""
        return hidden[..., :0]


class Flux2(Transformer):
    """The family of FLUX.2 klein, the base models."""

    name = "flux-2"
    model = Flux2Transformer2DModel
    pipelines: ClassVar = {Flux2KleinPipeline: {}}
    kept_options = ("is_distilled",)
    classes: ClassVar = {
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        "text_encoder": ("Qwen3ForCausalLM",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }
    text = (TextPart("text_encoder", "tokenizer", "token_ids", is_open=True, prepare=chat),)
    tokens = most_tokens = 512
    guidance = 4.0
    autoencoder = AutoencoderKLFlux2
    packing = 2
    flow = True
    checkpointed = (Flux2TransformerBlock, Flux2SingleTransformerBlock)

    def parts(self, index: Mapping[str, Any]) -> list[str]:
        return list(self.classes)

    def loaded(self, pipe: Any) -> None:
        """Takes out the last layers of Qwen3 and its head, which no layer of TEXT_LAYERS needs."""
        text = pipe.text_encoder.model
        text.layers = text.layers[:_TEXT_DEPTH]
        pipe.text_encoder.lm_head = _NoHead()

    def text_config(self, config: dict[str, Any]) -> dict[str, Any]:
        kinds = {"layer_types": config["layer_types"][:_TEXT_DEPTH]} if config.get("layer_types") else {}
        return {**config, "num_hidden_layers": min(config["num_hidden_layers"], _TEXT_DEPTH), **kinds}

    def encode(
        self, pipe: Any, ids: list[Tensor], null: Tensor | None, pixels: tuple[int, int], text_tokens: int | None
    ) -> Condition:
        """Null captions are the encoding of "", as in the pipeline."""
        mask = text_mask(ids[0], pipe.tokenizer.pad_token_id)
        text = pipe.text_encoder.model(ids[0], attention_mask=mask, output_hidden_states=True, use_cache=False)
        layers = [text.hidden_states[number] for number in TEXT_LAYERS]  # each [B, L, D]
        return {"encoder_hidden_states": torch.cat(layers, dim=-1)}

    def denoise(self, network: nn.Module, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The transformer takes tokens [B, h * w, C] and sigma, rounded as in the pipeline."""
        height, width = noised.shape[2:]
        image, text = _places(height, width, condition["encoder_hidden_states"].shape[1], noised.device)
        out = network(
            hidden_states=noised.flatten(2).mT,
            timestep=timesteps.to(noised.dtype) / 1000,
            guidance=None,
            **condition,
            txt_ids=text,
            img_ids=image,
            return_dict=False,
        )[0]
        return out.mT.unflatten(2, (height, width))

    def to_vae(self, pipe: Any, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(pipe, latents)
        return functional.pixel_shuffle(latents * deviation + mean, self.packing)

    def from_vae(self, pipe: Any, latents: Tensor) -> Tensor:
        squares = functional.pixel_unshuffle(latents, self.packing)
        mean, deviation = _statistics(pipe, squares)
        return (squares - mean) / deviation

    def from_output(self, pipe: Any, latents: Tensor) -> Tensor:
        """The pipeline returns the VAE's latents."""
        return self.from_vae(pipe, latents)

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """The configuration names no size: the latents of the pipeline's default."""
        return config["in_channels"], _SIDE, _SIDE

    def blank_condition(
        self, config: Mapping[str, Any], batch: int, tokens: int, dtype: torch.dtype | None
    ) -> Condition:
        return {"encoder_hidden_states": torch.zeros(batch, tokens, config["joint_attention_dim"], dtype=dtype)}

    def blocks(self, network: Any) -> list[nn.Module]:
        return [*network.transformer_blocks, *network.single_transformer_blocks]

    def first_layer(self, network: Any) -> nn.Module:
        return network.x_embedder

    def stack(self, config: Mapping[str, Any]) -> Stack:
        """A block of two streams returns (text, image), a block of one stream both in one sequence."""
        double = block_names(config["num_layers"])
        single = block_names(config["num_single_layers"], "single_transformer_blocks")
        taps = (*((f"{name}[1]", f"{name}[0]") for name in double), *((name,) for name in single))
        return Stack((*double, *single), taps, (len(double), len(single)))

    def with_blocks(self, config: Mapping[str, Any], kept: Sequence[int]) -> DenoiserConfig:
        double = sum(number < config["num_layers"] for number in kept)
        return {**config, "num_layers": double, "num_single_layers": len(kept) - double}

    def with_heads(self, config: Mapping[str, Any], heads: int) -> DenoiserConfig:
        return {**config, "num_attention_heads": heads}

    def faults(self, folder: Path, parts: list[str]) -> Iterator[str]:
        return configuration_faults(self, folder, parts)

    def default_rule(self, config: Mapping[str, Any]) -> str:
        """All blocks of two streams and half of those of one."""
        return f"depth-{config['num_layers']}+{max(2, config['num_single_layers'] // 2)}"

    def tag(self, pipeline: type[DiffusionPipeline]) -> str:
        return "flux-2"


def _statistics(pipe: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the standard deviation [1, 128, 1, 1] of the squares of the VAE's latents."""
    norm = pipe.vae.bn
    mean, variance = (each.view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var))
    deviation = torch.sqrt(variance + pipe.vae.config.batch_norm_eps)
    return mean.to(like.device, like.dtype), deviation.to(like.device, like.dtype)
