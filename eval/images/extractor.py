"""What reads an image: the seam between drawing and scoring."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Rows = dict[str, Tensor]


@dataclass(frozen=True)
class Extractor:
    """A network that reads images; `identity` says which weights, for the protocol beside every score."""

    identity: str
    width: int  # of the features that statistics are taken of; 0: none
    read: Callable[[Tensor, list[str]], Rows]  # (images uint8 [n, 3, H, W], captions) -> rows
