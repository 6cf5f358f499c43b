"""The interface between drawing and scoring: networks that read features from images."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Features = dict[str, Tensor]  # name of a feature -> its values for n images [n, ...]


@dataclass(frozen=True)
class Extractor:
    """A network that reads features from images.

    `identity` names the network and its weights. It is stored with every score.
    """

    identity: str
    width: int  # of the features that statistics are computed from; 0 if there are none
    read: Callable[[Tensor, list[str]], Features]  # (images uint8 [n, 3, H, W], n captions) -> features
