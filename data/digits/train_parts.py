"""Trains the networks of the digits world from random weights: judge, autoencoder, text encoder and U-Net."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from randcond.data.digits.judge import Judge
from randcond.data.digits.tokenizer import build_text_encoder
from randcond.data.digits.world import Caption, all_captions, load_glyphs, sample_images
from randcond.launch.runtime.progress import Progress

SEED = 0
THREADS = 2
JUDGE_STEPS = 900
VAE_STEPS = 1200
TEXT_STEPS = 300
UNET_STEPS = 3000
BATCH = 64
NULL_SHARE = 0.1  # share of null captions (""), which guidance needs


def batches(split: str, steps: int, size: int, seed: int, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields `steps` batches of new images of one split: images [size, 3, 32, 32] in [-1, 1], labels [size, 3].

    Shows a progress bar with the title `what`.
    """
    glyphs, digits = load_glyphs(split)
    for step in Progress(range(steps), desc=what, unit="step"):
        yield sample_images(glyphs, digits, size, seed=seed * 1_000_003 + step)


def held_out(n: int = 2000) -> tuple[Tensor, Tensor]:
    """Returns n images [n, 3, 32, 32] in [-1, 1] of held-out handwriting, and their labels [n, 3]."""
    return sample_images(*load_glyphs("held_out"), n, seed=SEED)


def judge_losses(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Returns the sum [] of the cross-entropies of three heads. logits: [n, classes] per head, labels: [n, 3]."""
    losses = [F.cross_entropy(head, label) for head, label in zip(logits, labels.T, strict=True)]
    return torch.stack(losses).sum()


def accuracy(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns the shares of correct digits, colours and backgrounds, given predicted and true labels [n, 3]."""
    shares = (predicted == labels).double().mean(0).tolist()
    return dict(zip(("digit", "colour", "background"), [round(share, 4) for share in shares], strict=True))


def train_judge() -> Judge:
    """Trains the judge on noisy, warped images, so that it also classifies generated images correctly."""
    torch.manual_seed(SEED)
    judge = Judge().train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, JUDGE_STEPS)
    for images, labels in batches("train", JUDGE_STEPS, 128, seed=1, what="judge"):
        logits, _ = judge(images + 0.05 * torch.randn_like(images))
        optimizer.zero_grad()
        judge_losses(logits, labels).backward()
        optimizer.step()
        schedule.step()
    return judge.eval().requires_grad_(False)


def train_vae() -> AutoencoderKL:
    """Trains the autoencoder from images [3, 32, 32] to latents [4, 8, 8].

    Sets its scaling factor to one over the standard deviation of the latents.
    """
    torch.manual_seed(SEED)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, VAE_STEPS)
    for images, _ in batches("train", VAE_STEPS, 32, seed=2, what="autoencoder"):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + 1e-5 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    vae.eval().requires_grad_(False)
    images, _ = held_out(512)
    deviation = vae.encode(images).latent_dist.mode().std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    return vae


class WordReader(nn.Module):
    """Predicts digit, colour and background from the pooled text embedding, so that the encoder separates its words.

    Without this loss, the U-Net learned to draw good digits, but ignored which digit the caption names.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in (10, 8, 8))

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Returns the sum [] of the three cross-entropies, given pooled embeddings [n, width] and labels [n, 3]."""
        return judge_losses([head(pooled) for head in self.heads], labels)


class CaptionBook:
    """Token ids of all captions of the world, looked up by label."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        captions: list[Caption] = all_captions()
        encoded = tokenizer(
            [caption.text for caption in captions] + [""], padding="max_length", truncation=True, return_tensors="pt"
        )
        self.tokens = encoded.input_ids  # [3201, 16]; the last row is the null caption
        self.templates = len(captions) // (10 * 8 * 8)

    def for_labels(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Returns token ids [n, 16] of captions for labels [n, 3], each with a random template."""
        template = torch.randint(self.templates, (len(labels),), generator=generator)
        index = ((labels[:, 0] * 8 + labels[:, 1]) * 8 + labels[:, 2]) * self.templates + template
        return self.tokens[index]


def middle_timesteps(n: int, generator: torch.Generator) -> Tensor:
    """Draws timesteps [n] in 0 .. 999 with triangular density. The middle ones decide the content of the image."""
    return ((torch.rand(n, generator=generator) + torch.rand(n, generator=generator)) * 500).long()


def train_text_and_unet(vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Trains the text encoder alone, then text encoder and U-Net on noised latents (epsilon prediction).

    The latents are those of the training split. Returns the text encoder and the U-Net with its EMA weights.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    book = CaptionBook(tokenizer)
    text_encoder = build_text_encoder(tokenizer)
    reader = WordReader(text_encoder.config.hidden_size)
    text_parameters = [*text_encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(text_parameters, lr=1e-3)
    for _ in Progress(range(TEXT_STEPS), desc="text encoder", unit="step"):
        labels = torch.stack([torch.randint(n, (BATCH,), generator=generator) for n in (10, 8, 8)], dim=1)
        loss = reader(text_encoder(book.for_labels(labels, generator)).pooler_output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    glyphs, digits = load_glyphs("train")
    images, all_labels = sample_images(glyphs, digits, 24_000, seed=3)
    with torch.no_grad():
        encoded = [vae.encode(part).latent_dist.mode() for part in images.split(256)]
    all_latents = torch.cat(encoded) * vae.config.scaling_factor  # [24000, 4, 8, 8]

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=4,  # diffusers' name for the number of heads, as in SD v1.4
        norm_num_groups=16,
    )
    average = torch.optim.swa_utils.AveragedModel(
        unet, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.997), use_buffers=False
    )
    schedule = teacher_schedule()
    trained = [*unet.parameters(), *text_parameters]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.99))
    warm_up = 100

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / UNET_STEPS)))

    learning_rate = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    progress = Progress(range(UNET_STEPS), desc="U-Net", unit="step")
    for _ in progress:
        index = torch.randint(len(all_latents), (BATCH,), generator=generator)
        latents, labels = all_latents[index], all_labels[index]
        tokens = book.for_labels(labels, generator)
        null = torch.rand(BATCH, generator=generator) < NULL_SHARE
        timesteps = middle_timesteps(BATCH, generator)
        noise = torch.randn(latents.shape, generator=generator)
        text = text_encoder(torch.where(null[:, None], book.tokens[-1:], tokens))
        predicted = unet(schedule.add_noise(latents, noise, timesteps), timesteps, text.last_hidden_state).sample
        denoising = F.mse_loss(predicted, noise)
        words = reader(text.pooler_output[~null], labels[~null])
        optimizer.zero_grad()
        (denoising + 0.01 * words).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        learning_rate.step()
        average.update_parameters(unet)
        progress.set_postfix(denoising=f"{denoising.item():.4f}", words=f"{words.item():.3f}", refresh=False)
    return text_encoder.eval(), average.module.eval()


def teacher_schedule() -> DDPMScheduler:
    """Returns Stable Diffusion's noise schedule: scaled_linear betas, 1,000 timesteps, epsilon prediction."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def score_teacher(pipe: Any, judge: Judge, guidance: float, n: int = 500, **options: Any) -> dict[str, float]:
    """Generates images of n captions with 25 sampling steps, and returns the judge's shares of correct labels.

    guidance: guidance scale. options: further arguments of the pipeline's call.
    """
    captions = all_captions()[:: len(all_captions()) // n][:n]
    images = []
    for start in Progress(range(0, n, 50), desc=f"images, guidance {guidance}", unit="batches"):
        part = [caption.text for caption in captions[start : start + 50]]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        settings = {"num_inference_steps": 25, "guidance_scale": guidance, "output_type": "pt", **options}
        drawn = pipe(part, generator=generators, **settings)
        images.append(drawn.images * 2 - 1)
    labels = torch.tensor([[caption.digit, caption.colour, caption.background] for caption in captions])
    return accuracy(judge.classify(torch.cat(images))[0], labels)


@torch.no_grad()
def rebuild(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encodes and decodes images [n, 3, 32, 32] in [-1, 1]. Returns images of the same shape."""
    return vae.decode(vae.encode(images).latent_dist.mode()).sample
