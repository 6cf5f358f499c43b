"""Mean and covariance of features in float64, and the Fréchet distance. Sums run block by block in a fixed order."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # rows that are converted to float64 at once


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
