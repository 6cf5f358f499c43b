"""Converts latents between the scale that most denoisers see and the VAE's own."""

from typing import Any

from torch import Tensor


def to_vae(pipe: Any, latents: Tensor) -> Tensor:
    """Converts latents [n, C, h, w] as the denoiser sees them to those that the VAE decodes. pipe: a pipeline."""
    config = pipe.vae.config
    scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    mean, std = _mean_and_std(config, latents)
    return scaled * std + mean


def from_vae(pipe: Any, latents: Tensor) -> Tensor:
    """Converts latents [n, C, h, w] as the VAE encodes them to those that the denoiser sees. pipe: a pipeline."""
    config = pipe.vae.config
    mean, std = _mean_and_std(config, latents)
    return ((latents - mean) / std - (getattr(config, "shift_factor", None) or 0)) * config.scaling_factor


def _mean_and_std(config: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and standard deviation [1, C, 1, 1] that normalise a VAE's latents.

    Returns 0 and 1 if the VAE's configuration has none. Both have the dtype and device of `like`.
    """
    if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
        return like.new_zeros(()), like.new_ones(())
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return mean, std
