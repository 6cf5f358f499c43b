"""Mean and covariance of features in float64, and the Fréchet distance. Sums run block by block in a fixed order."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # rows that are converted to float64 at once
INFINITY_POINTS = 15  # as in the paper


@dataclass(frozen=True)
class Moments:
    """Number, mean and covariance of feature vectors: the input of the Fréchet distance."""

    count: int
    mean: np.ndarray  # [d], float64
    covariance: np.ndarray  # [d, d], float64, unbiased

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Computes the moments of features [n, d], n > 1.

        It takes two passes, because E[x^2] - E[x]^2 would subtract two large, almost equal numbers.
        """
        count, width = features.shape
        assert count > 1
        mean = torch.zeros(width, dtype=torch.float64)
        for block in features.split(BLOCK):
            mean += block.double().sum(dim=0)
        mean /= count
        covariance = torch.zeros(width, width, dtype=torch.float64)
        for block in features.split(BLOCK):
            centred = block.double() - mean
            covariance += centred.T @ centred
        return cls(count, mean.numpy(), (covariance / (count - 1)).numpy())


def frechet_distance(one: Moments, other: Moments) -> float:
    """Returns the Fréchet distance between two Gaussians with these moments, by torch-fidelity."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    both = [{"mu": moments.mean, "sigma": moments.covariance} for moments in (one, other)]
    return float(np.real(fid_statistics_to_metric(*both, verbose=False)[KEY_METRIC_FID]))


def symmetric_root(matrix: Tensor) -> Tensor:
    """Returns the square root of a covariance [d, d], fp64. Negative eigenvalues, which rounding makes, count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_infinity(features: Tensor, real: Moments) -> float | None:
    """Returns the Fréchet distance extrapolated to infinitely many drawn images (Chong and Forsyth, CVPR 2020).

    Distances of INFINITY_POINTS numbers of images, half of them to all, are fitted by a line over 1 / number.
    features: of the drawn images [n, d]. Returns None unless half of them are more than d: the covariance of fewer is
    singular, and the distance is no line.
    """
    count, width = features.shape
    if count // 2 <= width:
        return None
    root = symmetric_root(torch.from_numpy(real.covariance))
    random = np.random.default_rng(0)
    numbers = np.linspace(count // 2, count, INFINITY_POINTS).astype(int)
    distances = []
    for number in numbers:
        drawn = Moments.of(features[np.sort(random.permutation(count)[:number])])
        values = torch.linalg.eigvalsh(root @ torch.from_numpy(drawn.covariance) @ root).clamp(min=0)
        shift = float(((drawn.mean - real.mean) ** 2).sum())
        traces = float(np.trace(drawn.covariance) + np.trace(real.covariance))
        distances.append(shift + traces - 2 * float(values.sqrt().sum()))
    return float(np.polyfit(1 / numbers, distances, 1)[1])
