"""Trains the embedded world's judge and teacher from nothing: `python -m randcond.data.digits.train_teacher OUT`.

In: the handwriting of `world`. Out: OUT/judge and OUT/teacher, the latter an ordinary diffusers Stable-Diffusion
folder (AutoencoderKL, CLIPTokenizer, CLIPTextModel, UNet2DConditionModel, DDPM schedule) with a model card.
One seed, one thread count, CPU. Each finished part is kept in OUT and not trained again, so an interrupted run goes on.
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
NULL_SHARE = 0.1  # captions replaced by "", so that the teacher can be guided


def batches(split: str, steps: int, size: int, seed: int, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Fresh pictures of one split, with a progress bar: images [size, 3, 32, 32], labels [size, 3]."""
    glyphs, digits = load_glyphs(split)
    for step in tqdm(range(steps), desc=what, mininterval=2):
        yield sample_images(glyphs, digits, size, seed=seed * 1_000_003 + step)


def held_out(n: int = 2000) -> tuple[Tensor, Tensor]:
    """n pictures of handwriting no network was trained on."""
    return sample_images(*load_glyphs("held_out"), n, seed=SEED)


def judge_losses(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Sum of the three heads' cross-entropies; labels [n, 3]."""
    losses = [F.cross_entropy(head, label) for head, label in zip(logits, labels.T, strict=True)]
    return torch.stack(losses).sum()


def accuracy(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of right digits, colours and backgrounds; both [n, 3]."""
    shares = (predicted == labels).double().mean(0).tolist()
    return dict(zip(("digit", "colour", "background"), [round(share, 4) for share in shares], strict=True))


def train_judge() -> Judge:
    """Trains the classifier on noisy, shifted and plain pictures, so that it reads drawings as well as scans."""
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
    """Trains the autoencoder, 32x32x3 to 8x8x4, and sets its scaling factor to one over the latents' deviation."""
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
    """Reads digit, colour and background off the text encoder's last token: makes it tell its words apart.

    Without it the U-Net learned to draw good digits and to ignore which digit the caption names.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in (10, 8, 8))

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """pooled [n, width], labels [n, 3] -> the three cross-entropies' sum."""
        return judge_losses([head(pooled) for head in self.heads], labels)


class CaptionBook:
    """Captions of the world by what they show, tokenized once."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        captions: list[Caption] = all_captions()
        encoded = tokenizer(
            [caption.text for caption in captions] + [""], padding="max_length", truncation=True, return_tensors="pt"
        )
        self.tokens = encoded.input_ids  # [3201, 16], the last row is ""
        self.templates = len(captions) // (10 * 8 * 8)

    def for_labels(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Token ids [n, 16] of a random template for labels [n, 3]."""
        template = torch.randint(self.templates, (len(labels),), generator=generator)
        index = ((labels[:, 0] * 8 + labels[:, 1]) * 8 + labels[:, 2]) * self.templates + template
        return self.tokens[index]


def middle_timesteps(n: int, generator: torch.Generator) -> Tensor:
    """Timesteps [n] on 0..999, denser in the middle, where the picture's content is decided (triangular density)."""
    return ((torch.rand(n, generator=generator) + torch.rand(n, generator=generator)) * 500).long()


def train_text_and_unet(vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Trains text encoder and U-Net on noised latents of the training handwriting (epsilon prediction)."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    book = CaptionBook(tokenizer)
    text_encoder = build_text_encoder(tokenizer)
    reader = WordReader(text_encoder.config.hidden_size)
    language = [*text_encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(language, lr=1e-3)
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
    trained = [*unet.parameters(), *language]
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
    """Stable Diffusion's noise schedule: scaled_linear betas, 1,000 steps, epsilon."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def score_teacher(pipe: StableDiffusionPipeline, judge: Judge, guidance: float, n: int = 500) -> dict[str, float]:
    """Draws n captions with DDIM 25 and asks the judge: shares of right digits, colours and backgrounds."""
    captions = all_captions()[:: len(all_captions()) // n][:n]
    images = []
    for start in tqdm(range(0, n, 50), desc=f"drawing, guidance {guidance}", mininterval=2):
        part = [caption.text for caption in captions[start : start + 50]]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        drawn = pipe(part, num_inference_steps=25, guidance_scale=guidance, generator=generators, output_type="pt")
        images.append(drawn.images * 2 - 1)
    labels = torch.tensor([[caption.digit, caption.colour, caption.background] for caption in captions])
    return accuracy(judge.classify(torch.cat(images))[0], labels)


@torch.no_grad()
def rebuild(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images [n, 3, 32, 32] through encoder and decoder."""
    return vae.decode(vae.encode(images).latent_dist.mode()).sample


class Parts:
    """Trains each part once and remembers its seconds, so that an interrupted run goes on with the next part."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def make(self, name: str, train: Callable[[Path], None], folder: Path) -> None:
        """Has `train` fill a folder aside and renames it into place, unless it is there already."""
        if folder.is_dir():
            return
        begun = time.monotonic()
        with atomic_write(folder) as aside:
            train(aside)
        self.seconds[name] = round(time.monotonic() - begun, 1)
        write_json(self.path, self.seconds)


def main(out: str) -> None:
    """Trains what OUT does not hold yet, assembles the diffusers folder, scores it and writes its model card."""
    folder = Path(out)
    torch.set_num_threads(THREADS)
    print(f"training the digits judge and teacher into {folder}: about 20 minutes on two cores; Ctrl-C and go on later")
    parts = Parts(folder)
    parts.make("judge", lambda aside: train_judge().save(aside), folder / "judge")
    judge = Judge.load(folder / "judge")
    parts.make("autoencoder", lambda aside: train_vae().half().save_pretrained(aside), folder / "vae")
    parts.make("text encoder and U-Net", lambda aside: train_teacher(folder / "vae", aside), folder / "teacher")

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
    """Trains text encoder and U-Net and writes the whole Stable-Diffusion folder; the U-Net is stored in fp16."""
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).eval()
    vae.register_to_config(_name_or_path="")  # no path of this machine in what ships
    tokenizer = build_tokenizer()
    text_encoder, unet = train_text_and_unet(vae, tokenizer)
    scheduler = DDIMScheduler.from_config(teacher_schedule().config, set_alpha_to_one=False)  # as SD's own folder
    StableDiffusionPipeline(
        vae.half(), text_encoder, tokenizer, unet.half(), scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)


def model_card(facts: dict[str, Any], pipe: StableDiffusionPipeline) -> str:
    """The README.md of the teacher's folder."""
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
  autoencoder {VAE_STEPS}, text encoder alone {TEXT_STEPS} (it learns to tell its words apart), then text encoder and
  U-Net {UNET_STEPS} steps of {BATCH}, AdamW, learning rate 1e-3 with cosine decay, EMA 0.997. Minutes: {minutes}.
- **Schedule**: scaled_linear betas 0.00085 to 0.012, 1,000 steps, epsilon prediction.
- **Made by** `make digits-teacher`, with {", ".join(f"{name} {number}" for name, number in facts["versions"].items())}.

Shares the judge reads right (2,000 held-out pictures; 500 captions drawn with DDIM 25):

| | digit | colour | background |
|---|---|---|---|
{rows}

The judge is a classifier trained on the same training scans, never on drawings. It is stored beside the teacher.
"""


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m randcond.data.digits.train_teacher OUT")
        sys.exit(0 if {"--help", "-h"} & set(sys.argv) else 2)
    main(sys.argv[1])
