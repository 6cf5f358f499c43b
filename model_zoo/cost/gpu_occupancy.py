"""Estimates the share of a GPU's cores that a denoiser's matrix products keep busy. Small batches make too few tiles.

The result of a product [M, K] x [K, N] is cut into tiles. A core (streaming multiprocessor) computes one tile at a
time. The last round of tiles ("wave") leaves cores idle, and a product with few tiles uses only a few cores. Long sums
are split among idle cores, as cuBLAS and cuDNN do. Memory and launch times are left out, so the estimate is an upper
bound. Kernels are also counted, because each one takes a minimum time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from randcond.model_zoo.denoiser.architecture import Architecture, once_per_architecture
from randcond.model_zoo.denoiser.forward import blank_forward

TILE = 128  # rows and columns of one core's tile
MIN_SPLIT_DEPTH = 512  # shortest part of a sum that is split among cores


@dataclass(frozen=True)
class Product:
    """One matrix product [M, K] x [K, N] of a forward pass at batch 1, or `groups` such products."""

    rows: int  # M; proportional to the batch, except in attention products
    columns: int  # N
    depth: int  # K
    groups: int = 1  # in attention products, the number of heads; proportional to the batch
    attends: bool = False  # True for attention products


@dataclass(frozen=True)
class Work:
    """The work of one forward pass at batch 1."""

    products: tuple[Product, ...]
    kernels: int  # all products, and half of the other operations, because compilation fuses those


_VIEWS = {"view", "t", "_unsafe_view", "transpose", "expand", "unsqueeze", "permute", "split", "slice", "zeros"}


class _ProductRecorder(TorchDispatchMode):
    """Records the shapes of all matrix products, and counts the other operations."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.other_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            _, channels, height, width = out.shape
            self.products.append(Product(height * width, channels, args[1][0].numel()))
        elif name in ("mm", "addmm"):
            left, right = args[-2:]
            self.products.append(Product(left.shape[0], right.shape[1], right.shape[0]))
        elif name == "bmm":
            left, right = args
            self.products.append(Product(left.shape[1], right.shape[2], left.shape[2], left.shape[0], attends=True))
        elif name not in _VIEWS:
            self.other_operations += 1
        return out


@once_per_architecture
def forward_work(denoiser: Architecture) -> Work:
    """Returns the matrix products and the number of kernels of a forward pass at batch 1, using the meta device."""
    with torch.device("meta"), torch.no_grad():
        network = denoiser.build()
        with _ProductRecorder() as recorder:
            blank_forward(denoiser, network)
    return Work(tuple(recorder.products), len(recorder.products) + recorder.other_operations // 2)


def occupancy(forward: Work | None, trained: Work, batch: int, cores: int) -> float:
    """Returns the share of a GPU's cores that are busy, averaged over forward and backward passes.

    forward: a network that runs only a forward pass (the teacher), or None.
    trained: a network that runs a forward and a backward pass (the student).
    batch: samples per pass. cores: streaming multiprocessors of the GPU.
    """
    ideal_time = actual_time = 0.0
    for rows, columns, depth, groups in _all_products(forward.products if forward else (), trained.products, batch):
        ideal, actual = _product_times(rows, columns, depth, groups, cores)
        ideal_time += ideal
        actual_time += actual
    return ideal_time / actual_time


def _all_products(
    forward: Iterable[Product], trained: Iterable[Product], batch: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yields (rows, columns, depth, groups) of all products of the forward and backward passes."""
    for product in (*forward, *trained):
        yield _batched(product, batch)
    for product in trained:  # gradients with respect to the input and to the weights
        rows, columns, depth, groups = _batched(product, batch)
        yield rows, depth, columns, groups
        yield depth, columns, rows, groups


def _batched(product: Product, batch: int) -> tuple[int, int, int, int]:
    """Returns (rows, columns, depth, groups) of a product at a batch size."""
    if product.attends:
        return product.rows, product.columns, product.depth, product.groups * batch
    return product.rows * batch, product.columns, product.depth, 1


@cache
def _product_times(rows: int, columns: int, depth: int, groups: int, cores: int) -> tuple[float, float]:
    """Returns the time of a product if all cores are busy, and its time with idle cores.

    The unit is the time of one multiply-add on one core.
    """
    ideal = groups * rows * columns * depth / cores
    best = float("inf")
    for tile in (TILE, TILE // 2):
        tiles = groups * -(-rows // tile) * -(-columns // tile)
        parts = max(1, min(cores // tiles, depth // MIN_SPLIT_DEPTH))
        waves = -(-tiles * parts // cores)
        slowdown = 1.0 if tile == TILE else 1.5  # a small tile needs more loads per multiply-add
        best = min(best, waves * tile * tile * depth / parts * slowdown)
    return ideal, best
