"""Drawing by per-caption seeds: an image depends on its caption, its seed and the compute batch, never on the rank.

In: a diffusers pipeline, one chunk of captions and seeds. Out: latents as the U-Net sees them, or images.
"""

import hashlib

import torch
from diffusers import DiffusionPipeline
from torch import Tensor


def caption_seed(seed: int, caption_id: int) -> int:
    """The seed of one caption's initial noise, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{caption_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # torch takes 63 bits


@torch.no_grad()
def draw_latents(
    pipe: DiffusionPipeline, captions: list[str], seeds: list[int], steps: int, guidance: float, batch: int
) -> Tensor:
    """Draws up to `batch` captions as one compute batch -> latents x_0 [n, C, h, w], scaled as the U-Net sees them.

    A short chunk is padded to `batch` with its own last caption, so that every latent is computed in the same shapes.
    """
    assert 0 < len(captions) == len(seeds) <= batch
    padding = batch - len(captions)
    generators = [torch.Generator().manual_seed(seed) for seed in [*seeds, *([seeds[-1]] * padding)]]
    drawn = pipe(
        [*captions, *([captions[-1]] * padding)],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        output_type="latent",
    )
    return drawn.images[: len(captions)]


@torch.no_grad()
def encode(pipe: DiffusionPipeline, images: Tensor, seeds: list[int], batch: int) -> Tensor:
    """Images [n, 3, H, W] in [-1, 1], up to `batch` -> latents [n, C, h, w] as the U-Net sees them.

    A sample of the VAE's posterior, by a seed per image, scaled; padded to `batch` as in `draw_latents`.
    """
    assert 0 < len(images) == len(seeds) <= batch
    padded = torch.cat([images, images[-1:].expand(batch - len(images), -1, -1, -1)])
    posterior = pipe.vae.encode(padded.to(pipe.device, pipe.vae.dtype)).latent_dist
    noise = [torch.randn(posterior.mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    mean, std = posterior.mean[: len(images)].float(), posterior.std[: len(images)].float()
    latents = mean + std * torch.stack(noise).to(mean.device)
    centre, spread = _statistics(pipe, latents)
    return (latents - centre) / spread * pipe.vae.config.scaling_factor


@torch.no_grad()
def decode(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Latents [n, C, h, w] as the U-Net sees them -> images [n, 3, H, W] in [-1, 1], in the VAE's own precision."""
    config = pipe.vae.config
    scaled = latents.to(pipe.vae.dtype) / config.scaling_factor
    centre, spread = _statistics(pipe, scaled)
    return pipe.vae.decode(scaled * spread + centre, return_dict=False)[0].clamp(-1, 1).float()


def _statistics(pipe: DiffusionPipeline, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [1, C, 1, 1] that a VAE's latents are shifted and divided by; 0 and 1 where it names none."""
    config = pipe.vae.config
    if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
        return like.new_zeros(()), like.new_ones(())
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return mean, std
