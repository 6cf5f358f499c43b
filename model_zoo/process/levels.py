"""How far a timestep is on the way from the clean latent (0) to noise (1), by three measures.

`time`: its place in the schedule. `sigma`: the share of noise, sigma = b / (a + b) for x_t = a x_0 + b eps. `noise`:
the place in SD 1.4's schedule of the timestep with the same signal-to-noise ratio, so that p(t) means the same for
every teacher.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from randcond.model_zoo.process.timesteps import shifted

MEASURES = ("time", "sigma", "noise")
SD14_TIMESTEPS = 1000


class Level(Protocol):
    """A measure of timesteps."""

    def __call__(self, timestep: float) -> float:
        """Returns how far a timestep is on the way to noise, in [0, 1]."""


@dataclass(frozen=True)
class TableLevel:
    """The level of each of a schedule's T timesteps."""

    levels: tuple[float, ...]

    def __call__(self, timestep: float) -> float:
        return self.levels[int(timestep)]


@dataclass(frozen=True)
class FlowLevel:
    """A level of a rectified flow's timestep t = sigma T."""

    of: str  # one of MEASURES
    timesteps: int  # T
    shift: float  # of the training's draws; `time` is sigma before it, which is drawn evenly

    def __call__(self, timestep: float) -> float:
        sigma = timestep / self.timesteps
        if self.of == "noise":
            return sd14_time(sigma)
        return min(1.0, shifted(sigma, 1 / self.shift)) if self.of == "time" else sigma  # it may be rounded up


def sd14_time(sigma: float) -> float:
    """Returns t/T of SD 1.4's timestep with the share of noise `sigma`; its last one for all that have more.

    >>> round(sd14_time(0.618), 3), sd14_time(1.0)
    (0.5, 0.999)
    """
    return float(np.interp(sigma, sd14_sigmas(), np.arange(SD14_TIMESTEPS))) / SD14_TIMESTEPS


@cache
def sd14_sigmas() -> np.ndarray:
    """Returns the share of noise [1000], fp64, of SD 1.4's timesteps: scaled_linear betas from 0.00085 to 0.012."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, SD14_TIMESTEPS) ** 2
    return sigmas_of(np.cumprod(1 - betas))


def sigmas_of(signal: np.ndarray) -> np.ndarray:
    """Returns sqrt(1 - abar) / (sqrt(abar) + sqrt(1 - abar)) for abar [T]."""
    noise = np.sqrt(1 - signal)
    return noise / (np.sqrt(signal) + noise)
