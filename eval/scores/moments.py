"""Mean and covariance of features in float64, summed block by block in a fixed order."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # rows turned to float64 at once


@dataclass(frozen=True)
class Moments:
    """What a Frechet distance needs of a set of features."""

    count: int
    mean: np.ndarray  # [d], float64
    covariance: np.ndarray  # [d, d], float64, unbiased

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of features [n, d], n > 1; in two passes, so that nothing large is subtracted from something large."""
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
    """Frechet distance of the two Gaussians, by torch-fidelity."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    both = [{"mu": each.mean, "sigma": each.covariance} for each in (one, other)]
    return float(np.real(fid_statistics_to_metric(*both, verbose=False)[KEY_METRIC_FID]))
