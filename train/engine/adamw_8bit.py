"""AdamW that stores its two moments in 8 bits: 2 bytes per parameter instead of 8.

The arithmetic is torch's fused AdamW in fp32. Between two steps, the moments are stored in blocks of 256 values: a code
of 8 bits for each value, and one scale for the block, its largest absolute value. The codes stand for the values of
"8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861), which are closer together near 0. Two of them differ:

- The smallest signed one is -1, theirs is -0.993. So the largest value of a block is stored exactly, whatever its sign.
  Values that were read and are stored again then give the same codes and scales: a checkpoint of fp32 values is exact.
- The smallest unsigned one is 1e-7, theirs is 0. A second moment that became 0 would give a far too large update.

torchao's and bitsandbytes' optimizers have neither property. torchao's also keeps fp32 moments for a tensor that is no
multiple of 256, as most flat partitions of ZeRO are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

BLOCK = 256  # values with one scale
CHUNK = 1 << 22  # values that are in fp32 at the same time; a multiple of BLOCK
SMALLEST = 1e-24  # scale of a block of zeros
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # name -> whether its values may be negative


@dataclass
class Stored:
    """Values [size] in 8 bits."""

    codes: Tensor  # [size, rounded up to whole blocks], uint8
    scales: Tensor  # [blocks], fp32
    size: int
    signed: bool

    @classmethod
    def zeros(cls, size: int, signed: bool, device: torch.device) -> "Stored":
        """Returns `size` values, all zero (unsigned: 1e-31)."""
        blocks = -(-size // BLOCK)
        codes, _ = to_codes(torch.zeros(BLOCK, device=device), signed)
        return cls(codes.repeat(blocks), torch.full((blocks,), SMALLEST, device=device), size, signed)

    def read(self, start: int, stop: int) -> Tensor:
        """Returns the values from `start` to `stop` [stop - start], fp32."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        values = from_codes(self.codes[first * BLOCK : last * BLOCK], self.scales[first:last], self.signed)
        return values[start - first * BLOCK : stop - first * BLOCK]

    def write(self, values: Tensor) -> None:
        """Stores fp32 values [size]."""
        for start in range(0, self.size, CHUNK):
            part = values[start : start + CHUNK]
            blocks = -(-part.numel() // BLOCK)
            padded = torch.nn.functional.pad(part, (0, blocks * BLOCK - part.numel()))
            codes, scales = to_codes(padded, self.signed)
            self.codes[start : start + codes.numel()] = codes
            self.scales[start // BLOCK : start // BLOCK + blocks] = scales


@cache
def code_values(signed: bool, device: torch.device) -> Tensor:
    """Returns the values of the codes [256], fp32, ascending.

    Seven decades from 1e-6 to 1 have 1, 2, 4, ... 64 values for each sign (unsigned: twice as many), evenly spaced.
    """
    positive: list[float] = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, (1 if signed else 2) * 2**decade + 1, dtype=torch.float64)
        positive += (10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2).tolist()
    others = [0.0, -1.0, *(-value for value in positive[:-1])] if signed else [1e-7]
    return torch.tensor(sorted([*others, *positive, 1.0]), dtype=torch.float32, device=device)


@cache
def nearest_codes(signed: bool, device: torch.device) -> Tensor:
    """Returns the code of the nearest value for each number of 16 bits in fp16 [65536], uint8.

    To look a code up is a tenth of the work of a search among 256 values. fp16 is far finer than the codes.
    """
    values = code_values(signed, torch.device("cpu"))
    numbers = torch.arange(1 << 16, device="cpu").to(torch.int16).view(torch.float16).float()
    return torch.bucketize(numbers, (values[1:] + values[:-1]) / 2).to(torch.uint8).to(device)


def to_codes(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Returns the codes of fp32 values [blocks * 256] and the scales [blocks]."""
    blocks = values.view(-1, BLOCK)
    scales = blocks.abs().amax(1).clamp(min=SMALLEST)
    bits = (blocks / scales[:, None]).half().view(torch.int16).view(-1).int() & 0xFFFF
    return nearest_codes(signed, values.device).index_select(0, bits), scales


def from_codes(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """Returns the fp32 values [blocks * 256] of codes and scales [blocks]."""
    values = code_values(signed, codes.device).index_select(0, codes.int())
    return (values.view(-1, BLOCK) * scales[:, None]).view(-1)


@dataclass
class Part:
    """A range of a parameter that is updated at once, in whole blocks."""

    weights: Tensor  # [n], a view
    gradients: Tensor  # [n]
    state: dict[str, Any]  # of the parameter
    start: int  # the first value
    stop: int  # the end of the last block; more than start + n if that block is not full


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments in 8 bits. Takes the fp32 master weights: plain tensors or, with FSDP2, DTensors."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @staticmethod
    def initial_state(parameter: Tensor) -> dict[str, Any]:
        """Returns the state of a parameter before the first step: `step` [] on the CPU, and the moments."""
        held = local(parameter)
        moments = {name: Stored.zeros(held.numel(), signed, held.device) for name, signed in MOMENTS.items()}
        return {"step": torch.tensor(0.0), **moments}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parts in self._chunks(group["params"]):
                _update(parts, group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["step"] += 1

    def _chunks(self, parameters: list[Tensor]) -> Iterator[list[Part]]:
        """Yields parts of the parameters, some CHUNK values at a time. Small parameters come together."""
        parts: list[Part] = []
        size = 0
        for parameter in (each for each in parameters if each.grad is not None):
            assert parameter.grad is not None
            state = self.state[parameter] = self.state[parameter] or self.initial_state(parameter)
            weights, gradients = local(parameter).view(-1), local(parameter.grad).view(-1)
            for start in range(0, weights.numel(), CHUNK):
                end = min(start + CHUNK, weights.numel())
                stop = start + -(-(end - start) // BLOCK) * BLOCK
                if size + stop - start > CHUNK:
                    yield parts
                    parts, size = [], 0
                parts.append(Part(weights[start:end], gradients[start:end], state, start, stop))
                size += stop - start
        if parts:
            yield parts


def _update(parts: list[Part], group: dict[str, Any]) -> None:
    """Reads the moments of the parts, runs AdamW's step on them, and stores the moments again."""
    sizes = [part.stop - part.start for part in parts]
    flat, views = {}, {}
    for name, signed in MOMENTS.items():
        codes, scales = (torch.cat(held) for held in zip(*(_held(part, name) for part in parts), strict=True))
        flat[name] = from_codes(codes, scales, signed)
        pairs = zip(flat[name].split(sizes), parts, strict=True)
        views[name] = [values[: part.weights.numel()] for values, part in pairs]
    device = parts[0].weights.device
    adamw(
        [part.weights for part in parts],
        [part.gradients for part in parts],
        views["exp_avg"],
        views["exp_avg_sq"],
        [],
        # Copies: AdamW counts the step up for each part, and a parameter may have several parts.
        [torch.full((), float(part.state["step"]), device=device) for part in parts],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    for name, signed in MOMENTS.items():
        codes, scales = to_codes(flat[name], signed)
        stored = zip(codes.split(sizes), scales.split([size // BLOCK for size in sizes]), parts, strict=True)
        for new_codes, new_scales, part in stored:
            held_codes, held_scales = _held(part, name)
            held_codes.copy_(new_codes)
            held_scales.copy_(new_scales)


def _held(part: Part, name: str) -> tuple[Tensor, Tensor]:
    """Returns the codes and the scales of a part's moment, as views."""
    stored = part.state[name]
    return stored.codes[part.start : part.stop], stored.scales[part.start // BLOCK : part.stop // BLOCK]


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's share of a tensor: that of a DTensor, or a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
