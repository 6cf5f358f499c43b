"""Stores the weights of a frozen network in 8 bits: half the bytes of bf16, with a small error.

The linear layers and convolutions of the repeated blocks are stored as int8, with one scale per output channel. Each
forward pass turns the weights of a layer back into the dtype of its scale (bf16) just before it uses them. All other
weights stay as they are: those of the first and the last layers, time embeddings, norms, biases and token embeddings.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 127


class Int8Layer(nn.Module):
    """A linear layer or convolution whose weights are stored in 8 bits."""

    scale: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight, scale = to_int8(layer.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # [out, in, ...], int8
        self.register_buffer("scale", scale)  # [out, 1, ...]
        self.bias = layer.bias
        self.convolution = (
            {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
            if isinstance(layer, nn.Conv2d)
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps x as the layer does: [..., in] to [..., out], or [B, in, h, w] to [B, out, h, w]."""
        weight = self.weight * self.scale
        if self.convolution is None:
            return functional.linear(x, weight, self.bias)
        return functional.conv2d(x, weight, self.bias, **self.convolution)


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a weight [out, in, ...] as int8, and its scales [out, 1, ...]: weight = int8 * scale.

    A scale has the dtype of the weight. It is rounded first, so that its rounding adds no error.
    """
    largest = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True).float()
    scale = torch.where(largest > 0, largest / LARGEST, 1.0).to(weight.dtype)
    return (weight.float() / scale.float()).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def takes_int8(name: str, module: nn.Module) -> bool:
    """Returns True if `store_in_int8` replaces this module of a network: a layer inside of a numbered block."""
    if not any(part.isdigit() for part in name.split(".")):
        return False
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.padding_mode == "zeros")


def store_in_int8(network: nn.Module) -> tuple[int, int]:
    """Stores the weights of a frozen network in 8 bits, in place.

    Returns the number of layers that are stored so, and the number of all linear layers and convolutions.
    """
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    taken = [(name, module) for name, module in layers if takes_int8(name, module)]
    for name, module in taken:
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, Int8Layer(module))
    return len(taken), len(layers)


def int8_bytes(network: nn.Module) -> int:
    """Returns the bytes that a network takes whose weights are stored in 8 bits, and the others in bf16.

    The network may be on the meta device.
    """
    taken = [module.weight for name, module in network.named_modules() if takes_int8(name, module)]
    saved = sum(weight.numel() - 2 * weight.shape[0] for weight in taken)  # a scale has 2 bytes
    return 2 * sum(each.numel() for each in network.parameters()) - saved
