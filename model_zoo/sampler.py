"""Generates images from one seed per caption.

An image depends on its caption, its seed and the size of the compute batch, but never on the rank.
In: a diffusers pipeline, and one chunk of captions and seeds. Out: latents as the denoiser sees them, or images.
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
    LCMScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.model_zoo.families.base import vae_latents
from randcond.model_zoo.families.registry import family_of_pipeline, pixels_per_latent

SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {  # name -> scheduler class, fixed options
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),  # as in Stable Diffusion's own configuration
    "euler": (EulerDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),  # of models that were distilled for 1 to 8 steps
}
FP32_NOISE = "pipeline, noise in fp32"  # what sampler_dtype() returns for a transformer that computes in bf16
DECODED_AT_ONCE = 1 << 20  # pixels per call of the VAE; its activations for a batch of large images would not fit


def build_sampler(name: str, own: Any) -> Any:
    """Builds the named sampler from the configuration of the checkpoint's `own` sampler (supplement K).

    The name "teacher" gives a new sampler of the same class as `own`.
    Raises UserError for any other name if the model is a flow-matching one, because SAMPLERS do not support those.
    """
    if name == "teacher" and "clip_sample" not in own.config:
        return type(own).from_config(own.config)
    config = {**own.config, "clip_sample": False}  # latents are never clipped
    # diffusers resets the keys in `_use_default_values` to the new class's defaults, and DDIM clips by default.
    config["_use_default_values"] = [key for key in config.get("_use_default_values", []) if key != "clip_sample"]
    if name == "teacher":
        return type(own).from_config(config)
    if is_of_flow(own):
        raise UserError(f"sampler {name}: does not support flow-matching models ({type(own).__name__}); use `teacher`")
    scheduler_class, options = SAMPLERS[name]
    return scheduler_class.from_config(config, **options)


def is_of_flow(scheduler: Any) -> bool:
    """Returns True if a model's own scheduler is for flow matching."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def default_setting(pipe: DiffusionPipeline, name: str) -> Any:
    """Returns the default of a parameter of the pipeline's call, e.g. num_inference_steps."""
    return inspect.signature(type(pipe).__call__).parameters[name].default


def caption_seed(seed: int, caption_id: int) -> int:
    """Returns the seed of one caption's initial noise. It is the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{caption_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # torch accepts 63 bits; its CPU generator uses 32 of them


def own_resolution(pipe: Any) -> int:
    """Returns the side length, in pixels, of the images that a pipeline generates by default."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    family = family_of_pipeline(pipe)
    side = family.latent_shape(denoiser.config)[1] if family else denoiser.config.sample_size
    return int(side * pixels_per_latent(pipe))


def sampler_dtype(pipe: Any) -> str:
    """Returns the dtype in which `draw_latents` keeps latents between steps.

    "fp32" if the denoiser is a U-Net that takes the VAE's latents and nothing else, "pipeline" (its own choice) if not.
    For a transformer of a known family that computes in bf16, it also tells that the noise is drawn in fp32.
    """
    unet = getattr(pipe, "unet", None)
    if isinstance(unet, UNet2DConditionModel):
        return "fp32" if unet.config.in_channels == pipe.vae.config.latent_channels else "pipeline"
    return FP32_NOISE if family_of_pipeline(pipe) and pipe.transformer.dtype != torch.float32 else "pipeline"


@contextmanager
def _in_float32(scheduler: Any, network_dtype: torch.dtype) -> Iterator[None]:
    """Makes the sampler compute in fp32 and rounds the network's inputs to `network_dtype`.

    In bf16 every step would round the latents to 8 bits, and guidance amplifies small differences.
    """
    scale, step = scheduler.scale_model_input, scheduler.step

    @wraps(scale)
    def scale_and_round(sample: Tensor, *args: Any, **options: Any) -> Tensor:
        return scale(sample, *args, **options).to(network_dtype)

    @wraps(step)  # pipelines inspect its signature
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
    text_tokens: int | None = None,
) -> Tensor:
    """Generates latents x_0 [n, C, h, w] of n captions (1 <= n <= batch) in one compute batch.

    The latents are scaled as the denoiser sees them.
    A short chunk is padded to `batch` with its last caption, so that every latent is computed in the same shapes.
    If `steps`, `guidance` (guidance scale), `resolution` (pixels) or `text_tokens` (`teacher.text_tokens`) is None, the
    pipeline's default applies.
    The initial noise of a known family is drawn in fp32: in bf16, torch's normal random numbers have only 256 levels
    and end at 3.33. If `sampler_dtype` is "fp32", the sampler computes in fp32, too, whatever the network's dtype.
    """
    assert 0 < len(captions) == len(seeds) <= batch
    padding = batch - len(captions)
    generators = [torch.Generator().manual_seed(seed) for seed in [*seeds, *([seeds[-1]] * padding)]]
    options: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "height": resolution,
        "width": resolution,
        "max_sequence_length": text_tokens,
    }
    family = family_of_pipeline(pipe)
    options |= family.call_options if family else {}
    kept = sampler_dtype(pipe)
    in_fp32 = kept == "fp32"
    if in_fp32 or kept == FP32_NOISE:
        denoiser = getattr(pipe, "unet", None) or pipe.transformer
        side = (resolution or own_resolution(pipe)) // pixels_per_latent(pipe)
        noise = randn_tensor((batch, denoiser.config.in_channels, side, side), generators)
        options["latents"] = noise if in_fp32 else noise.to(denoiser.dtype)
    with _in_float32(pipe.scheduler, pipe.unet.dtype) if in_fp32 else nullcontext():
        drawn = pipe(
            prompt=[*captions, *([captions[-1]] * padding)],
            generator=generators,
            output_type="latent",
            **{name: value for name, value in options.items() if value is not None},
        )
    latents = drawn.images[: len(captions)]
    return family.from_output(pipe, latents) if family else latents


@torch.no_grad()
def encode(pipe: DiffusionPipeline, images: Tensor, seeds: list[int], batch: int) -> Tensor:
    """Encodes n images [n, 3, H, W] in [-1, 1] (1 <= n <= batch) to latents [n, C, h, w] as the denoiser sees them.

    Each latent is a sample from the VAE's posterior, drawn with the image's seed and scaled.
    The images are padded to `batch`, as in `draw_latents`.
    """
    assert 0 < len(images) == len(seeds) <= batch
    padded = torch.cat([images, images[-1:].expand(batch - len(images), -1, -1, -1)])
    posterior = pipe.vae.encode(padded.to(pipe.vae.device, pipe.vae.dtype)).latent_dist
    noise = [torch.randn(posterior.mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    mean, std = posterior.mean[: len(images)].float(), posterior.std[: len(images)].float()
    latents = mean + std * torch.stack(noise).to(mean.device)
    return (family_of_pipeline(pipe) or vae_latents).from_vae(pipe, latents)


@torch.no_grad()
def decode(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Decodes latents [n, C, h, w] as the denoiser sees them to fp32 images [n, 3, H, W] in [-1, 1].

    The VAE computes in its own dtype. Raises UserError if the latents are not 4-D with the VAE's channels.
    """
    family = family_of_pipeline(pipe)
    channels = pipe.vae.config.latent_channels * (family.packing**2 if family else 1)
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise UserError(
            f"{type(pipe).__name__}: cannot decode latents of shape {list(latents.shape)}, "
            f"expected [n, {channels}, h, w]"
        )
    scaled = (family or vae_latents).to_vae(pipe, latents.to(pipe.vae.dtype))
    pixels = scaled[0, 0].numel() * pipe.vae_scale_factor**2
    parts = scaled.split(max(1, DECODED_AT_ONCE // pixels))
    return torch.cat([pipe.vae.decode(part, return_dict=False)[0].clamp(-1, 1).float() for part in parts])


def to_bytes(images: Tensor) -> Tensor:
    """Converts images [n, 3, H, W] in [-1, 1] to uint8 in [0, 255], rounding as diffusers' image processor does.

    >>> to_bytes(torch.tensor([-1.0, 0.0, 1.0])).tolist()
    [0, 128, 255]
    """
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
