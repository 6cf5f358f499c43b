"""The maximum mean discrepancy of CMMD (arXiv:2401.09603, Eq. 5 of Gretton et al. 2012), in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

SIGMA = 10.0  # bandwidth of the Gaussian kernel
SCALE = 1000.0  # makes the number readable; CMMD's choice, as is SIGMA
BLOCK = 1024  # rows of the kernel matrix that are computed at once


@dataclass(frozen=True)
class Mmd:
    """The biased MMD^2 between two sets of normalised features, times SCALE."""

    drawn: Tensor  # mean kernel of each drawn image with the drawn ones [n]
    across: Tensor  # with the real ones [n]
    real: float  # mean kernel of the real images with each other

    @classmethod
    def of(cls, drawn: Tensor, real: Tensor) -> "Mmd":
        """Computes it from features [n, d] and [m, d], which are normalised first."""
        one, other = _unit(drawn), _unit(real)
        return cls(_kernel_means(one, one), _kernel_means(one, other), float(_kernel_means(other, other).mean()))

    @property
    def value(self) -> float:
        """The score."""
        return float(SCALE * (self.drawn.mean() + self.real - 2 * self.across.mean()))

    @property
    def influence(self) -> Tensor:
        """The influence of each drawn image on the score [n], fp64 (see influence.py)."""
        witness = self.drawn - self.across
        return 2 * SCALE * (witness - witness.mean())


def _unit(features: Tensor) -> Tensor:
    """Returns features [n, d] divided by their lengths, float64."""
    return torch.nn.functional.normalize(features.double(), dim=1)


def _kernel_means(one: Tensor, other: Tensor) -> Tensor:
    """Returns for each row of `one` [n, d] the mean kernel with the rows of `other` [m, d]: [n]. All of length 1."""
    # exp(-|x - y|^2 / 2 sigma^2), with |x - y|^2 = 2 - 2 x y
    return torch.cat([torch.exp((rows @ other.T - 1) / SIGMA**2).mean(dim=1) for rows in one.split(BLOCK)])
