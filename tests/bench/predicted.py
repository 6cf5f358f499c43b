"""Predicts the gain of each optimisation from the cost model and this device's measured rates.

The step's bench prints it beside the measured gain. Optimisations that the model does not cover have no prediction.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.forward import blank_forward
from randcond.model_zoo.kernels.fp8 import takes_fp8

FUSED = 3  # assumed: ops outside of products that one fused kernel replaces; each of them reads and writes memory


@dataclass(frozen=True)
class Floor:
    """The parts of a step, in seconds on this device. `teacher`, `student`: FLOP of one sample's forward."""

    plain: float  # the plain step, measured
    elementwise: float  # its bytes outside of products over the memory rate; a backward counts as two forwards
    teacher: float
    student: float
    fp8: float  # the teacher's products that can run in fp8, at the measured matmul rate

    def gains(self) -> dict[str, float]:
        """Returns switch of the bench -> how many times as fast as the plain step."""
        compiled = self.plain - self.elementwise * (1 - 1 / FUSED)
        again = self.plain * self.student / (self.teacher + 3 * self.student)
        seconds = {
            "compiled whole": compiled,
            "compiled whole, teacher in fp8": compiled - self.fp8 / 2,
            "checkpointing": self.plain + again,
        }
        return {label: self.plain / left for label, left in seconds.items() if left > 0}


def fp8_flop(unet: Any) -> int:
    """Returns the FLOP of one sample's forward in the linear layers that can run in fp8."""
    found = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal found
        found += 2 * inputs[0].numel() * output.shape[-1]

    with torch.device("meta"), torch.no_grad():
        denoiser = Architecture.of(unet)
        shadow = denoiser.build()
        for name, module in shadow.named_modules():
            if takes_fp8(name, module):
                module.register_forward_hook(count)
        blank_forward(denoiser, shadow)
    return found
