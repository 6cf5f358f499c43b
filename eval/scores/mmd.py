"""The maximum mean discrepancy of CMMD (arXiv:2401.09603, Eq. 5 of Gretton et al. 2012), in float64."""

import torch
from torch import Tensor

SIGMA = 10.0  # bandwidth of the Gaussian kernel
SCALE = 1000.0  # makes the number readable; CMMD's choice, as is SIGMA
BLOCK = 1024  # rows of the kernel matrix that are computed at once


def mmd(drawn: Tensor, real: Tensor) -> float:
    """Returns the biased MMD^2, times SCALE, between features [n, d] and [m, d] that are normalised first."""
    one, other = unit(drawn), unit(real)
    means = kernel_means(one, one).mean() + kernel_means(other, other).mean() - 2 * kernel_means(one, other).mean()
    return float(SCALE * means)


def unit(features: Tensor) -> Tensor:
    """Returns features [n, d] divided by their lengths, float64."""
    return torch.nn.functional.normalize(features.double(), dim=1)


def kernel_means(one: Tensor, other: Tensor) -> Tensor:
    """Returns for each row of `one` [n, d] the mean kernel with the rows of `other` [m, d]: [n]. All of length 1."""
    # exp(-|x - y|^2 / 2 sigma^2), with |x - y|^2 = 2 - 2 x y
    return torch.cat([torch.exp((rows @ other.T - 1) / SIGMA**2).mean(dim=1) for rows in one.split(BLOCK)])
