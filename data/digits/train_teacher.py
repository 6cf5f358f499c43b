"""Trains the embedded world's judge and teacher from nothing: `python -m randcond.data.digits.train_teacher OUT`.

In: the handwriting of `world`. Out: OUT/judge and OUT/teacher, the latter an ordinary diffusers Stable-Diffusion
folder (AutoencoderKL, CLIPTokenizer, CLIPTextModel, UNet2DConditionModel, DDPM schedule) with a model card.
One seed, one thread count, CPU. Each finished part is kept in OUT and not trained again, so an interrupted run goes on.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from randcond.data.digits.judge import Judge
from randcond.data.digits.tokenizer import build_text_encoder, build_tokenizer
from randcond.data.digits.world import Caption, all_captions, load_glyphs, sample_images

SEED = 0
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


def score_teacher(folder: Path, judge: Judge, n: int = 500, guidance: float = 3.0) -> dict[str, float]:
    """Draws n captions with DDIM 25 and asks the judge: shares of right digits, colours and backgrounds."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    captions = all_captions()[:: len(all_captions()) // n][:n]
    images = []
    for start in tqdm(range(0, n, 50), desc="drawing", mininterval=2):
        part = [caption.text for caption in captions[start : start + 50]]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        drawn = pipe(part, num_inference_steps=25, guidance_scale=guidance, generator=generators, output_type="pt")
        images.append(drawn.images * 2 - 1)
    labels = torch.tensor([[caption.digit, caption.colour, caption.background] for caption in captions])
    return accuracy(judge.classify(torch.cat(images))[0], labels)


def main(out: str) -> None:
    """Trains what OUT does not hold yet, assembles the diffusers folder, scores it and writes its model card."""
    folder, seconds = Path(out), {}
    teacher = folder / "teacher"
    torch.set_num_threads(2)

    begun = time.time()
    if not (folder / "judge").is_dir():
        train_judge().save(folder / "judge")
    judge = Judge.load(folder / "judge")
    seconds["judge"] = time.time() - begun

    begun = time.time()
    if not (teacher / "vae").is_dir():
        train_vae().half().save_pretrained(teacher / "vae")
    vae = AutoencoderKL.from_pretrained(teacher / "vae", dtype=torch.float32).eval()
    seconds["autoencoder"] = time.time() - begun
    images, labels = held_out()
    with torch.no_grad():
        rebuilt = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images.split(250)])
    print("judge", accuracy(judge.classify(images)[0], labels), "vae", accuracy(judge.classify(rebuilt)[0], labels), vae.config.scaling_factor)

    begun = time.time()
    if not (teacher / "unet").is_dir():
        tokenizer = build_tokenizer()
        text_encoder, unet = train_text_and_unet(vae, tokenizer)
        pipe = StableDiffusionPipeline(
            vae.half(), text_encoder, tokenizer, unet.half(), teacher_schedule(), None, None, requires_safety_checker=False
        )
        pipe.save_pretrained(teacher)
    seconds["U-Net"] = time.time() - begun
    for guidance in (1.5, 3.0, 5.0):
        print(guidance, score_teacher(teacher, judge, guidance=guidance))
    print(seconds)


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
