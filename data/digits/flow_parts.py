"""Trains the text encoder and the transformer (MMDiT) of the digits world's flow-matching teacher."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from randcond.data.digits.t5 import LENGTH, build_t5, build_t5_tokenizer
from randcond.data.digits.train_parts import BATCH, NULL_SHARE, SEED, TEXT_STEPS, CaptionBook, WordReader
from randcond.data.digits.world import all_captions, load_glyphs, sample_images
from randcond.launch.runtime.progress import Progress

STEPS = 2000
BLOCKS, HEADS, HEAD_DIM = 8, 4, 32
EMA_DECAY = 0.997


@dataclass(frozen=True)
class Texts:
    """What the transformer is shown for each of the world's captions, and for the null caption, which comes last."""

    hidden: Tensor  # [3201, L, width]
    pooled: Tensor  # [3201, P]


def with_projection(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """Returns a CLIP text encoder as SD 3 takes it. Its projection is the identity."""
    config = encoder.config
    config.projection_dim = config.hidden_size
    made = CLIPTextModelWithProjection(config)
    weights = {f"text_model.{name}": value for name, value in encoder.state_dict().items()}
    missing, unexpected = made.load_state_dict(weights, strict=False)
    assert missing == ["text_projection.weight"] and not unexpected, (missing, unexpected)
    with torch.no_grad():
        made.text_projection.weight.copy_(torch.eye(config.hidden_size))
    return made.eval().requires_grad_(False)


def train_t5(width: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    """Trains a small T5 encoder to separate the words of the world's captions."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    tokenizer = build_t5_tokenizer()
    encoder, reader = build_t5(tokenizer, width), WordReader(width)
    captions = all_captions()
    ids = _t5_ids(tokenizer, [caption.text for caption in captions])
    labels = torch.tensor([[caption.digit, caption.colour, caption.background] for caption in captions])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *reader.parameters()], lr=1e-3)
    for _ in Progress(range(TEXT_STEPS), desc="T5", unit="step"):
        index = torch.randint(len(captions), (BATCH,), generator=generator)
        loss = reader(encoder(ids[index])[0].mean(dim=1), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tokenizer, encoder.eval().requires_grad_(False)


def _t5_ids(tokenizer: T5Tokenizer, captions: list[str]) -> Tensor:
    """Returns token ids [n, LENGTH], as the pipeline makes them."""
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def encode_all(
    clip: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, t5: T5EncoderModel, t5_tokenizer: T5Tokenizer
) -> Texts:
    """Encodes all captions once, because the text encoders are frozen. Both CLIPs of the pipeline are the same."""
    texts = [*(caption.text for caption in all_captions()), ""]
    hidden, pooled = [], []
    ids = CaptionBook(tokenizer).tokens
    for start in range(0, len(texts), 256):
        out = clip(ids[start : start + 256], output_hidden_states=True)
        own = t5(_t5_ids(t5_tokenizer, texts[start : start + 256]))[0]
        both = torch.cat([out.hidden_states[-2]] * 2, dim=-1)
        hidden.append(torch.cat([both, own], dim=1))
        pooled.append(torch.cat([out.text_embeds] * 2, dim=-1))
    return Texts(torch.cat(hidden), torch.cat(pooled))


def build_transformer(texts: Texts) -> SD3Transformer2DModel:
    """Returns an untrained transformer of 8 blocks, 4 heads of 32 channels, and patches of 2 x 2."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=texts.hidden.shape[-1],
        caption_projection_dim=HEADS * HEAD_DIM,
        pooled_projection_dim=texts.pooled.shape[-1],
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def train_transformer(vae: AutoencoderKL, texts: Texts) -> SD3Transformer2DModel:
    """Trains the transformer by flow matching, with logit-normal sigma, on latents of the training split.

    Returns it with its EMA weights.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    images, labels = sample_images(*load_glyphs("train"), 24_000, seed=3)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(256)])
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor  # [24000, 4, 8, 8]
    templates = (len(texts.hidden) - 1) // (10 * 8 * 8)

    transformer = build_transformer(texts)
    average = torch.optim.swa_utils.AveragedModel(
        transformer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY), use_buffers=False
    )
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-3, betas=(0.9, 0.99))
    learning_rate = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    progress = Progress(range(STEPS), desc="transformer", unit="step")
    for _ in progress:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        template = torch.randint(templates, (BATCH,), generator=generator)
        digit, colour, background = labels[index].T
        caption = ((digit * 8 + colour) * 8 + background) * templates + template
        null = torch.rand(BATCH, generator=generator) < NULL_SHARE
        caption = torch.where(null, len(texts.hidden) - 1, caption)
        noise = torch.randn(latents[index].shape, generator=generator)
        sigma = torch.randn(BATCH, generator=generator).sigmoid()
        mixed = sigma.view(-1, 1, 1, 1)
        predicted = transformer(
            hidden_states=(1 - mixed) * latents[index] + mixed * noise,
            timestep=1000 * sigma,
            encoder_hidden_states=texts.hidden[caption],
            pooled_projections=texts.pooled[caption],
            return_dict=False,
        )[0]
        loss = F.mse_loss(predicted, noise - latents[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        learning_rate.step()
        average.update_parameters(transformer)
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return average.module.eval()


def _rate(step: int) -> float:
    """Returns the factor of the learning rate: 100 steps of warm-up, then a cosine down to 5 %."""
    return min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
