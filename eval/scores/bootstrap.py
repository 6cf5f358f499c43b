"""Bootstrap intervals of scores and of differences between them, from the influence of each image (influence.py).

In: influence values [n] of the images of a split. Out: intervals, with the images taken as drawn at random.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from randcond.launch.runtime.files import atomic_write

_FILE = "influence.safetensors"  # beside scores.json
CONFIDENCE = 0.95
RESAMPLES = 1000
_AT_ONCE = 2_000_000  # images that are resampled at once


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2

    def holds(self, value: float) -> bool:
        """Returns True if the value is in it."""
        return self.low <= value <= self.high


def intervals(scores: Mapping[str, float], influence: Mapping[str, Tensor]) -> dict[str, Interval]:
    """Returns the interval of each score that has influence values [n] of its images.

    For the difference of two networks that drew the same captions: the difference of their influence values, in the
    order of the captions.
    """
    names = [name for name in scores if name in influence]
    if not names:
        return {}
    values = torch.stack([influence[name].double() for name in names], dim=1)  # [n, scores]
    count, tail = len(values), (1 - CONFIDENCE) / 2
    low, high = torch.quantile(_resampled_means(values), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    wider = (count / max(1, count - 1)) ** 0.5  # because resamples of n images vary too little
    # The images vary about the true score as resamples vary about the images. So the tails change sides.
    return {
        name: Interval(scores[name] - wider * float(high[column]), scores[name] - wider * float(low[column]))
        for column, name in enumerate(names)
    }


def _resampled_means(values: Tensor) -> Tensor:
    """Returns the means of resampled rows of values [n, k]: [RESAMPLES, k], from the same resamples for the same n."""
    count = len(values)
    generator = torch.Generator().manual_seed(0)
    means = []
    for start in range(0, RESAMPLES, at_once := max(1, _AT_ONCE // count)):
        drawn = torch.randint(count, (min(at_once, RESAMPLES - start), count), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        means.append(times.scatter_add_(1, drawn, torch.ones_like(times)) @ values / count)
    return torch.cat(means)


def save_influence(out: Path, influence: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes split -> score -> the influence of each image [n], as fp32 under keys "split/score"; nothing if empty."""
    flat = {f"{split}/{score}": values.float() for split, found in influence.items() for score, values in found.items()}
    if not flat:
        return
    with atomic_write(out / _FILE) as temporary:
        save_file(flat, temporary)


def load_influence(out: Path) -> dict[tuple[str, str], Tensor]:
    """Returns (split, score) -> the influence of each image [n] of an evaluation and of its benchmarks.

    Without files that are missing or damaged.
    """
    found: dict[tuple[str, str], Tensor] = {}
    for path in (out / _FILE, *sorted(out.glob(f"*/{_FILE}"))):
        with suppress(SafetensorError, FileNotFoundError):
            for key, values in load_file(path).items():
                split, score = key.split("/", 1)
                found[split, score] = values
    return found
