"""Drawing by per-caption seeds: an image depends on its caption, its seed and the compute batch, never on the rank.

In: a diffusers pipeline, one chunk of captions and seeds. Out: latents as the U-Net sees them, or images.
"""

import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from randcond.launch.errors import UserError

SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {  # name -> its class, and what does not come from the checkpoint
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),  # as Stable Diffusion's own: as many calls as steps
    "euler": (EulerDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
}
DECODED_AT_ONCE = 1 << 20  # pixels: a batch of large images would not fit an autoencoder's activations


def build_sampler(name: str, own: Any) -> Any:
    """A sampler built from the checkpoint's `own` one's configuration (supplement K); "teacher": its own, anew.

    Raises UserError for a flow-matching model, whose schedule no other sampler here follows.
    """
    config = {**own.config, "clip_sample": False}  # latents are never clipped
    # What diffusers filled in, it would fill in again, and DDIM's own default is to clip.
    config["_use_default_values"] = [key for key in config.get("_use_default_values", []) if key != "clip_sample"]
    if name == "teacher":
        return type(own).from_config(config)
    if type(own).__name__.startswith("FlowMatch"):
        raise UserError(f"sampler {name}: the model is a flow-matching one ({type(own).__name__}); take `teacher`")
    kind, options = SAMPLERS[name]
    return kind.from_config(config, **options)


def default_setting(pipe: DiffusionPipeline, name: str) -> Any:
    """What a pipeline takes for a setting of its call that is not given, e.g. num_inference_steps."""
    return inspect.signature(type(pipe).__call__).parameters[name].default


def caption_seed(seed: int, caption_id: int) -> int:
    """The seed of one caption's initial noise, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{caption_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # torch takes 63 bits, and its generator on a CPU keeps 32 of them


def own_resolution(pipe: Any) -> int:
    """Pixels of the side of the images that a pipeline draws where none is asked for."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    return denoiser.config.sample_size * pipe.vae_scale_factor


def sampler_dtype(pipe: Any) -> str:
    """In which type latents are kept between steps: fp32 where we see to it, else the pipeline's own choice."""
    unet = getattr(pipe, "unet", None)
    of_ours = isinstance(unet, UNet2DConditionModel) and unet.config.in_channels == pipe.vae.config.latent_channels
    return "fp32" if of_ours else "pipeline"


@contextmanager
def _in_float32(scheduler: Any, network: torch.dtype) -> Iterator[None]:
    """The sampler computes in fp32, and what it hands the network is rounded to that one's type.

    In bf16 every step would round the latents to 8 bits, and guidance makes much of little differences.
    """
    scale, step = scheduler.scale_model_input, scheduler.step

    @wraps(scale)
    def scale_and_round(sample: Tensor, *args: Any, **options: Any) -> Tensor:
        return scale(sample, *args, **options).to(network)

    @wraps(step)  # pipelines read its signature
    def step_in_float32(output: Tensor, *args: Any, **options: Any) -> Any:
        return step(output.float(), *args, **options)

    scheduler.scale_model_input, scheduler.step = scale_and_round, step_in_float32
    try:
        yield
    finally:
        del scheduler.scale_model_input, scheduler.step


@torch.no_grad()
def draw_latents(
    pipe: DiffusionPipeline,
    captions: list[str],
    seeds: list[int],
    steps: int | None,
    guidance: float | None,
    batch: int,
    resolution: int | None = None,
) -> Tensor:
    """Draws up to `batch` captions as one compute batch -> latents x_0 [n, C, h, w], scaled as the U-Net sees them.

    A short chunk is padded to `batch` with its own last caption, so that every latent is computed in the same shapes.
    Steps, guidance or resolution None: the pipeline's own. Of a U-Net's pipeline the noise is drawn in fp32, whatever
    the network's type (torch's normal numbers in bf16 are made of 256 levels and end at 3.33), and so are its steps.
    """
    assert 0 < len(captions) == len(seeds) <= batch
    padding = batch - len(captions)
    generators = [torch.Generator().manual_seed(seed) for seed in [*seeds, *([seeds[-1]] * padding)]]
    asked: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "height": resolution,
        "width": resolution,
    }
    exact = sampler_dtype(pipe) == "fp32"
    if exact:
        side = (resolution or own_resolution(pipe)) // pipe.vae_scale_factor
        asked["latents"] = randn_tensor((batch, pipe.unet.config.in_channels, side, side), generators)
    with _in_float32(pipe.scheduler, pipe.unet.dtype) if exact else nullcontext():
        drawn = pipe(
            [*captions, *([captions[-1]] * padding)],
            generator=generators,
            output_type="latent",
            **{name: value for name, value in asked.items() if value is not None},
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
    if latents.ndim != 4 or latents.shape[1] != config.latent_channels:
        raise UserError(
            f"{type(pipe).__name__}: latents of shape {list(latents.shape)} can't be decoded one by one here"
        )
    scaled = latents.to(pipe.vae.dtype) / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    centre, spread = _statistics(pipe, scaled)
    pixels = latents[0, 0].numel() * pipe.vae_scale_factor**2
    parts = (scaled * spread + centre).split(max(1, DECODED_AT_ONCE // pixels))
    return torch.cat([pipe.vae.decode(part, return_dict=False)[0].clamp(-1, 1).float() for part in parts])


def to_bytes(images: Tensor) -> Tensor:
    """Images [n, 3, H, W] in [-1, 1] -> uint8, as diffusers' own image processor rounds them."""
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()


def _statistics(pipe: DiffusionPipeline, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [1, C, 1, 1] that a VAE's latents are shifted and divided by; 0 and 1 where it names none."""
    config = pipe.vae.config
    if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
        return like.new_zeros(()), like.new_ones(())
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return mean, std
