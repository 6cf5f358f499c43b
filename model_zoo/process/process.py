"""The interface of a diffusion process."""

from abc import ABC, abstractmethod

from torch import Tensor


class Process(ABC):
    """How x_t is made of x_0 and noise, and what the denoiser predicts."""

    timesteps: int  # T, the length of the schedule; t = T is noise

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns x_t [B, C, h, w]. latents (x_0) and noise (eps): [B, C, h, w]. timesteps: t [B]."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns what the denoiser predicts [B, C, h, w]. The arguments are those of add_noise()."""
