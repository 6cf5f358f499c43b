"""Latent consistency distillation of an exported student, by the recipe of diffusers' example script, in small.

It stands in for `train_lcm_distill_sd_wds.py`, which diffusers publishes beside the package: the same network (a copy
of the teacher with an input for the guidance scale), solver (DDIM over 50 timesteps), Huber loss, target network.
In: a diffusers folder of Stable Diffusion's kind, WebDataset shards of images and captions. Out: a folder in the same
format.
"""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

SOLVER_STEPS = 50
SIGMA_DATA, TIMESTEP_SCALE = 0.5, 10.0
HUBER = 0.001
SCALES = (2.0, 6.0)  # of guidance, drawn uniformly; the recipe has 5 to 15 for Stable Diffusion
EMBEDDING = 256  # width of the embedded guidance scale


def read_shards(paths: Sequence[Path]) -> tuple[Tensor, list[str]]:
    """Returns the images [n, 3, H, W] in [-1, 1] and captions of shards that `eval.save=shards` wrote."""
    images, captions = [], []
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert data is not None
                if member.name.endswith(".txt"):
                    captions.append(data.read().decode())
                else:
                    images.append(np.array(Image.open(io.BytesIO(data.read())).convert("RGB")))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1, captions


def boundary(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns c_skip and c_out [n, 1, 1, 1] of timesteps [n]: at t = 0 the model is the identity."""
    scaled = TIMESTEP_SCALE * timesteps.float().view(-1, 1, 1, 1)
    return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5


def embedded(scales: Tensor) -> Tensor:
    """Returns the embedding [n, EMBEDDING] of guidance scales [n], as the pipeline computes it."""
    return StableDiffusionPipeline.get_guidance_scale_embedding(None, scales - 1, EMBEDDING)  # type: ignore[arg-type]


def distil(student: Path, shards: Sequence[Path], out: Path, steps: int, batch: int = 32, lr: float = 1e-3) -> Path:
    """Distils a student for few steps; returns `out`, a folder of diffusers with LCM's sampler."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline.from_pretrained(student, safety_checker=None)
    teacher, noiser = pipe.unet.requires_grad_(False), DDPMScheduler.from_config(pipe.scheduler.config)
    abar = noiser.alphas_cumprod
    online, target = (UNet2DConditionModel.from_config(teacher.config, time_cond_proj_dim=EMBEDDING) for _ in range(2))
    online.load_state_dict(teacher.state_dict(), strict=False)
    target.load_state_dict(online.state_dict())
    images, captions = read_shards(shards)
    with torch.no_grad():
        latents = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
        texts = torch.cat([encode(pipe, captions[start : start + 64]) for start in range(0, len(captions), 64)])
        null = encode(pipe, [""])
    optimizer = torch.optim.AdamW(online.parameters(), lr=lr, weight_decay=0.0)
    stride = len(abar) // SOLVER_STEPS

    def x_0(noise: Tensor, x: Tensor, timesteps: Tensor) -> Tensor:
        level = abar[timesteps].view(-1, 1, 1, 1)
        return (x - (1 - level).sqrt() * noise) / level.sqrt()

    def consistent(network: nn.Module, x: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        skip, scale = boundary(timesteps)
        return skip * x + scale * x_0(network(x, timesteps, **condition).sample, x, timesteps)

    for _ in range(steps):
        ids = torch.randint(len(latents), (batch,))
        start = (torch.randint(1, SOLVER_STEPS + 1, (batch,)) * stride) - 1
        end = (start - stride).clamp(min=0)
        x = noiser.add_noise(latents[ids], torch.randn_like(latents[ids]), start)
        w = torch.rand(batch) * (SCALES[1] - SCALES[0]) + SCALES[0]
        condition = {"encoder_hidden_states": texts[ids], "timestep_cond": embedded(w)}
        with torch.no_grad():
            with_text = teacher(x, start, texts[ids]).sample
            without = teacher(x, start, null.expand(batch, -1, -1)).sample
            guided = without + w.view(-1, 1, 1, 1) * (with_text - without)
            level = abar[end].view(-1, 1, 1, 1)
            before = level.sqrt() * x_0(guided, x, start) + (1 - level).sqrt() * guided  # one step of DDIM
            wanted = consistent(target, before, end, condition)
        found = consistent(online, x, start, condition)
        loss = (((found - wanted) ** 2 + HUBER**2).sqrt() - HUBER).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(online.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for ours, theirs in zip(target.parameters(), online.parameters(), strict=True):
                ours.lerp_(theirs, 0.05)
    pipe.unet, pipe.scheduler = target, LCMScheduler.from_config(noiser.config)
    pipe.save_pretrained(out)
    return out


def encode(pipe: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """Returns the text encoder's hidden states [n, tokens, d]."""
    options = {"padding": "max_length", "truncation": True, "max_length": pipe.tokenizer.model_max_length}
    return pipe.text_encoder(pipe.tokenizer(captions, return_tensors="pt", **options).input_ids)[0]
