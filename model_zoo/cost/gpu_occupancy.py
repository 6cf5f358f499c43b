"""How much of a GPU a U-Net's matrix products keep busy at a batch: small batches make too few tiles for its cores.

A product [M, K] x [K, N] is cut into tiles of its result, one tile per core (streaming multiprocessor) at a time; the
last round of tiles ("wave") leaves cores idle, and a product of few tiles all of them but a few. Long sums are split
among idle cores, as cuBLAS and cuDNN do. No memory or launch time: an upper bound of what the arithmetic can reach.
Kernels are counted too: each has a shortest time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

from randcond.model_zoo.denoiser.condition import blank_forward
from randcond.model_zoo.denoiser.configuration import once_per_configuration

TILE = 128  # rows and columns of a core's tile
SHORTEST = 512  # of a sum that is split among cores


@dataclass(frozen=True)
class Product:
    """One matrix product of a forward at batch 1, or `groups` of them (attention's heads)."""

    rows: int  # M; grows with the batch, unless there are groups, which do
    columns: int  # N
    depth: int  # K
    groups: int = 1
    attends: bool = False


@dataclass(frozen=True)
class Work:
    """What a forward runs."""

    products: tuple[Product, ...]
    kernels: int  # its products and half of all else, which compilation fuses


_VIEWS = {"view", "t", "_unsafe_view", "transpose", "expand", "unsqueeze", "permute", "split", "slice", "zeros"}


class _Products(TorchDispatchMode):
    """Notes the shapes of all products, and counts what else is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []
        self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            _, channels, height, width = out.shape
            self.found.append(Product(height * width, channels, args[1][0].numel()))
        elif name in ("mm", "addmm"):
            left, right = args[-2:]
            self.found.append(Product(left.shape[0], right.shape[1], right.shape[0]))
        elif name == "bmm":
            left, right = args
            self.found.append(Product(left.shape[1], right.shape[2], left.shape[2], left.shape[0], attends=True))
        elif name not in _VIEWS:
            self.others += 1
        return out


@once_per_configuration
def forward_work(model: type[UNet2DConditionModel], config: Mapping[str, Any]) -> Work:
    """Every matrix product of a forward at batch 1, and its kernels, by a forward of shapes only."""
    with torch.device("meta"), torch.no_grad():
        unet = model.from_config(config)
        with _Products() as noted:
            blank_forward(unet)
    return Work(tuple(noted.found), len(noted.found) + noted.others // 2)


def occupancy(forward: Work | None, trained: Work, batch: int, cores: int) -> float:
    """The share of a GPU's cores that work while it runs the one's forwards and the other's forwards and backwards.

    `batch`: samples at once.
    """
    ideal = spent = 0.0
    for rows, columns, depth, groups in _all(forward.products if forward else (), trained.products, batch):
        needed, taken = _rounds(rows, columns, depth, groups, cores)
        ideal += needed
        spent += taken
    return ideal / spent


def _all(forward: Iterable[Product], trained: Iterable[Product], batch: int) -> Iterator[tuple[int, int, int, int]]:
    for product in (*forward, *trained):
        yield _batched(product, batch)
    for product in trained:  # gradients of the input and of the weights
        rows, columns, depth, groups = _batched(product, batch)
        yield rows, depth, columns, groups
        yield depth, columns, rows, groups


def _batched(product: Product, batch: int) -> tuple[int, int, int, int]:
    if product.attends:
        return product.rows, product.columns, product.depth, product.groups * batch
    return product.rows * batch, product.columns, product.depth, 1


@cache
def _rounds(rows: int, columns: int, depth: int, groups: int, cores: int) -> tuple[float, float]:
    """(time of a product on cores that are all busy, its time with the idle ones), in multiply-adds of a core."""
    ideal = groups * rows * columns * depth / cores
    best = float("inf")
    for tile in (TILE, TILE // 2):
        tiles = groups * -(-rows // tile) * -(-columns // tile)
        parts = max(1, min(cores // tiles, depth // SHORTEST))
        waves = -(-tiles * parts // cores)
        slower = 1.0 if tile == TILE else 1.5  # a small tile is loaded more often for what is done with it
        best = min(best, waves * tile * tile * depth / parts * slower)
    return ideal, best
