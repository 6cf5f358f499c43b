"""How training draws its timesteps. Each draw is a pure function of a random generator."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Random(Protocol):
    """What the draws take of numpy's random generator."""

    def random(self) -> float:
        """Returns a number in [0, 1)."""

    def integers(self, end: int, /) -> int:
        """Returns a number of 0 .. end - 1."""

    def standard_normal(self) -> float:
        """Returns a standard normal number."""


class TimestepDraw(Protocol):
    """Draws the timestep of one sample."""

    def __call__(self, random: Random | np.random.Generator) -> float:
        """Returns a timestep t: an integer in 0 .. T - 1, or of a flow a real number in (0, T]."""


@dataclass(frozen=True)
class UniformIntegers:
    """Draws t uniformly from 0 .. T - 1, as DDPM does."""

    timesteps: int  # T

    def __call__(self, random: Random | np.random.Generator) -> int:
        return int(random.integers(self.timesteps))


@dataclass(frozen=True)
class FlowTimes:
    """Draws sigma of a rectified flow, shifts it, and returns t = sigma T."""

    timesteps: int  # T
    distribution: str  # uniform, or logit_normal: the logistic function of a standard normal number
    shift: float  # k: sigma' = k sigma / (1 + (k - 1) sigma)

    def __call__(self, random: Random | np.random.Generator) -> float:
        if self.distribution == "logit_normal":
            sigma = 1 / (1 + math.exp(-random.standard_normal()))
        else:
            sigma = 1 - random.random()  # in (0, 1]: noise is drawn, the clean latent is not
        return shifted(sigma, self.shift) * self.timesteps


def shifted(sigma: float, shift: float) -> float:
    """Returns k sigma / (1 + (k - 1) sigma): more noise for a shift k above 1.

    >>> shifted(0.5, 3.0), shifted(1.0, 3.0)
    (0.75, 1.0)
    """
    return shift * sigma / (1 + (shift - 1) * sigma)
