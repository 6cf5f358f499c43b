"""The process of rectified flow: SD 3's and FLUX's."""

from torch import Tensor

from randcond.model_zoo.process.levels import FlowLevel, Level
from randcond.model_zoo.process.process import Process
from randcond.model_zoo.process.timesteps import FlowTimes, TimestepDraw


class RectifiedFlow(Process):
    """x_t = (1 - sigma) x_0 + sigma eps with sigma = t / T in [0, 1]. The target is eps - x_0."""

    def __init__(self, timesteps: int = 1000) -> None:
        """timesteps: T."""
        self.timesteps = timesteps
        self.grid = range(timesteps + 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = (timesteps / self.timesteps).to(latents.dtype).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def draw(self, distribution: str, shift: float | None) -> TimestepDraw:
        return FlowTimes(self.timesteps, distribution, shift or 1.0)

    def level(self, of: str, shift: float | None) -> Level:
        return FlowLevel(of, self.timesteps, shift or 1.0)
