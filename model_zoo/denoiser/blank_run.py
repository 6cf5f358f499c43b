"""Runs a denoiser once without weights or a device, and notes its size, operations and shapes of features."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from randcond.model_zoo.denoiser.architecture import Architecture, once_per_architecture
from randcond.model_zoo.denoiser.forward import blank_forward


@dataclass(frozen=True)
class BlankRun:
    """What one forward pass with batch 1 tells about a denoiser."""

    parameters: int
    flop: dict[str, int]  # operation (aten.mm, ...) -> floating-point operations
    shapes: dict[str, tuple[int, ...]]  # module -> shape of its first output; module[i] -> of output i of several


@once_per_architecture
@torch.no_grad()
def blank_run(denoiser: Architecture, tokens: int | None = None) -> BlankRun:
    """Runs a denoiser on zeros on the meta device, which takes about a second.

    tokens: length of the text; None: the family's.
    """
    with torch.device("meta"):
        network = denoiser.build()
        shapes: dict[str, tuple[int, ...]] = {}
        for name, module in network.named_modules():
            module.register_forward_hook(_noting(name, shapes))
        with FlopCounterMode(display=False, depth=0) as counter:
            blank_forward(denoiser, network, tokens=tokens)
    flop = {str(operation): number for operation, number in counter.get_flop_counts()["Global"].items()}
    return BlankRun(sum(p.numel() for p in network.parameters()), flop, shapes)


def _noting(name: str, shapes: dict[str, tuple[int, ...]]) -> Any:
    def note(module: nn.Module, inputs: object, output: object) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        for number, each in enumerate(outputs):
            if isinstance(each, Tensor):
                shapes[f"{name}[{number}]"] = tuple(each.shape)
                if number == 0:
                    shapes[name] = tuple(each.shape)

    return note
