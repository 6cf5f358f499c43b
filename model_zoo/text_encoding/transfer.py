"""What stands in the host's memory and is needed on a device: small tensors, and the weights of text encoders."""

from collections.abc import Iterable

import torch
from accelerate import cpu_offload
from torch import Tensor, nn


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device. A copy out of pinned memory runs beside the GPU's work, any other one waits."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def keep_on_host(encoders: Iterable[nn.Module], device: torch.device | str) -> None:
    """Moves the weights of text encoders to the host's memory. Each layer is copied to the device when it runs."""
    for encoder in encoders:
        cpu_offload(encoder.to("cpu"), torch.device(device))
