"""The influence of each image on a score: n times the first-order change of the score per weight of the image.

For a mean, it is the image's value minus the mean. A score of resampled images is, to first order, the score plus the
mean influence of the images that were drawn. So bootstrap intervals take one pass over the stored features, also for
scores like FID whose own computation takes seconds (the infinitesimal jackknife; Efron 1982, chapter 6). Statistics of
real images are taken as exact. (Of the MMD: mmd.py.)
"""

import numpy as np
import torch
from torch import Tensor

from randcond.eval.scores.moments import BLOCK, Moments, symmetric_root

IS_SPLITS, IS_SEED = 10, 2020  # torch-fidelity's: which image belongs to which split


def of_mean(values: Tensor) -> Tensor:
    """Returns the influence of each image on the mean of values [n]: [n], fp64."""
    return values.double() - values.double().mean()


def of_frechet(features: Tensor, drawn: Moments, real: Moments) -> Tensor:
    """Returns the influence of each image on the Fréchet distance: [n], fp64.

    features: of the images [n, d]; drawn: their moments. With R = S_r^1/2 and T = R (R S_d R)^-1/2 R, the distance
    changes by 2 (m_d - m_r) dm + tr((1 - T) dS). Directions in which the drawn images don't vary are left out of the
    inverse: no weight of theirs changes the distance along them.
    """
    half = _few_images(features, drawn, real) if len(features) <= features.shape[1] else _many_images(drawn, real)
    mean, shift = torch.from_numpy(drawn.mean), torch.from_numpy(drawn.mean - real.mean)
    parts = []
    for block in features.split(BLOCK):
        centred = block.double() - mean
        parts.append(2 * centred @ shift + centred.square().sum(dim=1) - (centred @ half).square().sum(dim=1))
    influence = torch.cat(parts)
    return influence - influence.mean()


def _many_images(drawn: Moments, real: Moments) -> Tensor:
    """Returns H [d, k] with T = H H', by the eigenvalues and eigenvectors of R S_d R."""
    root = symmetric_root(torch.from_numpy(real.covariance))
    values, vectors = torch.linalg.eigh(root @ torch.from_numpy(drawn.covariance) @ root)
    kept = _above_rounding(values)
    return root @ vectors[:, kept] * values[kept] ** -0.25


def _few_images(features: Tensor, drawn: Moments, real: Moments) -> Tensor:
    """Returns H [d, k] as _many_images() does, at a cost that grows with n instead of d^3.

    With the centred features X and S_d = w X'X, R S_d R has the eigenvalues of w X S_r X' [n, n]. An eigenvector u of
    this gives R X' u of that.
    """
    centred, covariance = features.double() - torch.from_numpy(drawn.mean), torch.from_numpy(real.covariance)
    weight = float(np.trace(drawn.covariance)) / max(float(centred.square().sum()), torch.finfo(torch.float64).tiny)
    across = covariance @ centred.T  # [d, n]
    values, vectors = torch.linalg.eigh(weight * centred @ across)
    kept = _above_rounding(values)
    return weight**0.5 * across @ vectors[:, kept] * values[kept] ** -0.75


def _above_rounding(values: Tensor) -> Tensor:
    """Returns which eigenvalues, in ascending order, are more than rounding errors: bool [n]."""
    return values > values[-1] * len(values) * torch.finfo(values.dtype).eps


def of_inception_score(logits: Tensor) -> Tensor:
    """Returns the influence of each image on the Inception score over 10 splits: [n], fp64. logits: [n, classes].

    The score of a split is exp(mean KL(p_i || p)), with p the mean of its p_i.
    """
    count = len(logits)
    order = torch.from_numpy(np.random.RandomState(IS_SEED).permutation(count))
    influence = torch.zeros(count, dtype=torch.float64)
    for number in range(IS_SPLITS):
        ids = order[number * count // IS_SPLITS : (number + 1) * count // IS_SPLITS]
        log_p = logits[ids].double().log_softmax(dim=1)
        p = log_p.exp()
        divergence = (p * (log_p - p.mean(dim=0).log())).sum(dim=1)
        share = count / (IS_SPLITS * len(ids))  # the splits differ by an image if 10 does not divide n
        influence[ids] = share * divergence.mean().exp() * (divergence - divergence.mean())
    return influence
