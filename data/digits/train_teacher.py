"""Trains the judge and the teacher of the digits world: `python -m randcond.data.digits.train_teacher OUT`.

In: the handwriting of `world`. Out: OUT/judge and OUT/teacher. OUT/teacher is an ordinary Stable Diffusion folder of
diffusers (AutoencoderKL, CLIPTokenizer, CLIPTextModel, UNet2DConditionModel, DDIM scheduler) with a model card.
Training starts from random weights and runs on the CPU, with a fixed seed and number of threads. Finished parts stay
in OUT. An interrupted run resumes with the first unfinished part.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from randcond.data.digits.judge import Judge
from randcond.data.digits.tokenizer import build_text_encoder, build_tokenizer
from randcond.data.digits.world import Caption, all_captions, load_glyphs, sample_images
from randcond.launch.runtime.files import atomic_write, write_json, write_text

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
    for step in tqdm(range(steps), desc=what, mininterval=2):
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
    for _ in tqdm(range(TEXT_STEPS), desc="text encoder", mininterval=2):
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
    progress = tqdm(range(UNET_STEPS), desc="U-Net", mininterval=2)
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


def score_teacher(pipe: StableDiffusionPipeline, judge: Judge, guidance: float, n: int = 500) -> dict[str, float]:
    """Generates images of n captions with 25 DDIM steps, and returns the judge's shares of correct labels.

    guidance: guidance scale.
    """
    captions = all_captions()[:: len(all_captions()) // n][:n]
    images = []
    for start in tqdm(range(0, n, 50), desc=f"images, guidance {guidance}", mininterval=2):
        part = [caption.text for caption in captions[start : start + 50]]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        drawn = pipe(part, num_inference_steps=25, guidance_scale=guidance, generator=generators, output_type="pt")
        images.append(drawn.images * 2 - 1)
    labels = torch.tensor([[caption.digit, caption.colour, caption.background] for caption in captions])
    return accuracy(judge.classify(torch.cat(images))[0], labels)


@torch.no_grad()
def rebuild(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encodes and decodes images [n, 3, 32, 32] in [-1, 1]. Returns images of the same shape."""
    return vae.decode(vae.encode(images).latent_dist.mode()).sample


class Parts:
    """Trains each part once and records its training time, so that an interrupted run resumes with the next part."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def make(self, name: str, train: Callable[[Path], None], folder: Path) -> None:
        """Calls `train` with a temporary folder, then renames it to `folder`. Does nothing if `folder` exists."""
        if folder.is_dir():
            return
        start = time.monotonic()
        with atomic_write(folder) as temporary:
            train(temporary)
        self.seconds[name] = round(time.monotonic() - start, 1)
        write_json(self.path, self.seconds)


def main(out: str) -> None:
    """Trains the parts that are missing in OUT, scores the teacher, and writes training.json and the model card."""
    folder = Path(out)
    torch.set_num_threads(THREADS)
    print(f"training the digits judge and teacher in {folder}: about 20 minutes on two cores")
    print("stop with Ctrl-C; the same command resumes with the first unfinished part")
    parts = Parts(folder)
    parts.make("judge", lambda temporary: train_judge().save(temporary), folder / "judge")
    judge = Judge.load(folder / "judge")
    parts.make("autoencoder", lambda temporary: train_vae().half().save_pretrained(temporary), folder / "vae")
    parts.make("text encoder and U-Net", lambda temporary: train_teacher(folder / "vae", temporary), folder / "teacher")

    pipe = StableDiffusionPipeline.from_pretrained(folder / "teacher", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images, labels = held_out()
    rebuilt = torch.cat([rebuild(pipe.vae, part) for part in images.split(250)])
    scores = {
        "judge, held-out handwriting": accuracy(judge.classify(images)[0], labels),
        "autoencoder, held-out handwriting rebuilt": accuracy(judge.classify(rebuilt)[0], labels),
        **{f"teacher, guidance {scale}": score_teacher(pipe, judge, scale) for scale in (1.5, 3.0, 5.0)},
    }
    facts: dict[str, Any] = {
        "steps": UNET_STEPS,
        "seconds": sum(parts.seconds.values()),
        "seconds_by_part": parts.seconds,
        "scores": scores,
        "seed": SEED,
        "threads": THREADS,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "scikit-learn")},
    }
    write_json(folder / "teacher" / "training.json", facts)
    write_text(folder / "teacher" / "README.md", model_card(facts, pipe))
    for name, shares in scores.items():
        print(f"{name}: {', '.join(f'{what} {share:.1%}' for what, share in shares.items())}")
    print(f"trained in {facts['seconds'] / 60:.1f} minutes: {parts.seconds}")
    print(f"use it with teacher.path={folder / 'teacher'}")


def train_teacher(vae_folder: Path, folder: Path) -> None:
    """Trains text encoder and U-Net, and writes the complete Stable Diffusion folder.

    The U-Net and the VAE are stored in fp16.
    """
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).eval()
    vae.register_to_config(_name_or_path="")  # the shipped folder must not contain local paths
    tokenizer = build_tokenizer()
    text_encoder, unet = train_text_and_unet(vae, tokenizer)
    scheduler = DDIMScheduler.from_config(teacher_schedule().config, set_alpha_to_one=False)  # as in SD's own folder
    StableDiffusionPipeline(
        vae.half(), text_encoder, tokenizer, unet.half(), scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)


def model_card(facts: dict[str, Any], pipe: StableDiffusionPipeline) -> str:
    """Returns the text of README.md in the teacher's folder."""
    rows = "\n".join(
        f"| {name} | {shares['digit']:.1%} | {shares['colour']:.1%} | {shares['background']:.1%} |"
        for name, shares in facts["scores"].items()
    )
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()) / 1e6:.2f}M"
        for name, network in (("U-Net", pipe.unet), ("VAE", pipe.vae), ("text encoder", pipe.text_encoder))
    )
    minutes = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in facts["seconds_by_part"].items())
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The digits teacher

A small text-to-image latent diffusion model in Stable Diffusion's layout ({sizes}): handwritten digits in one of 8
colours on one of 8 backgrounds. It is the embedded teacher of randcond, for tests and for the demo.

- **Data**: scikit-learn's `load_digits` (UCI optical recognition of handwritten digits, 1,797 scans of 8x8),
  upsampled, slightly warped and coloured; 20% of the scans are held out.
- **Training**: from random weights, seed {facts["seed"]}, {facts["threads"]} CPU threads: judge {JUDGE_STEPS} steps,
  autoencoder {VAE_STEPS} steps, text encoder alone {TEXT_STEPS} steps (it learns to separate its words), then text
  encoder and U-Net {UNET_STEPS} steps with batches of {BATCH}, AdamW, learning rate 1e-3 with cosine decay, EMA 0.997.
  Minutes: {minutes}.
- **Schedule**: scaled_linear betas 0.00085 to 0.012, 1,000 steps, epsilon prediction.
- **Made with** `make digits-teacher`, {", ".join(f"{name} {number}" for name, number in facts["versions"].items())}.

Shares that the judge classifies correctly (2,000 held-out images; 500 captions, generated with 25 DDIM steps):

| | digit | colour | background |
|---|---|---|---|
{rows}

The judge is a classifier trained on the same training scans, never on generated images. It is stored in the folder
next to the teacher.
"""


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m randcond.data.digits.train_teacher OUT")
        sys.exit(0 if {"--help", "-h"} & set(sys.argv) else 2)
    main(sys.argv[1])
