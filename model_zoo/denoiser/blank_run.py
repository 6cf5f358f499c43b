"""Runs a U-Net once without weights or a device, and notes its size, its operations and the shapes of its features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from randcond.model_zoo.denoiser.condition import blank_forward
from randcond.model_zoo.denoiser.configuration import once_per_configuration, plain_config

TOKENS = 77  # length of a caption


@dataclass(frozen=True)
class BlankRun:
    """What one forward pass with batch 1 tells about a U-Net."""

    parameters: int
    flop: dict[str, int]  # operation (aten.mm, ...) -> floating-point operations
    shapes: dict[str, tuple[int, ...]]  # module -> shape of its output; of a tuple: of its first tensor


@once_per_configuration
@torch.no_grad()
def blank_run(model: type[UNet2DConditionModel], config: Mapping[str, Any], tokens: int = TOKENS) -> BlankRun:
    """Runs a U-Net of this class and configuration on zeros on the meta device, which takes about a second.

    tokens: length of the caption.
    """
    with torch.device("meta"):
        unet = model.from_config(plain_config(config))
        shapes: dict[str, tuple[int, ...]] = {}
        for name, module in unet.named_modules():
            module.register_forward_hook(_noting(name, shapes))
        with FlopCounterMode(display=False, depth=0) as counter:
            blank_forward(unet, tokens=tokens)
    flop = {str(operation): number for operation, number in counter.get_flop_counts()["Global"].items()}
    return BlankRun(sum(p.numel() for p in unet.parameters()), flop, shapes)


def _noting(name: str, shapes: dict[str, tuple[int, ...]]) -> Any:
    def note(module: nn.Module, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            shapes[name] = tuple(first.shape)

    return note
