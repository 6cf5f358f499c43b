"""The interface of a diffusion process."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from randcond.model_zoo.process.levels import Level
from randcond.model_zoo.process.timesteps import TimestepDraw


class Process(ABC):
    """How x_t is made of x_0 and noise, what the denoiser predicts, and which timesteps there are."""

    timesteps: int  # T, the length of the schedule; t = T is noise
    grid: Sequence[float]  # all timesteps, or evenly spaced ones if they are real numbers

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns x_t [B, C, h, w]. latents (x_0) and noise (eps): [B, C, h, w]. timesteps: t [B]."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns what the denoiser predicts [B, C, h, w]. The arguments are those of add_noise()."""

    @abstractmethod
    def draw(self, distribution: str, shift: float | None) -> TimestepDraw:
        """Returns how training draws timesteps. The arguments are train.timesteps and train.shift.

        Raises UserError naming a setting that the process does not have.
        """

    @abstractmethod
    def level(self, of: str, shift: float | None) -> Level:
        """Returns a measure of timesteps. of: one of MEASURES (conditioning.of). shift: train.shift."""
