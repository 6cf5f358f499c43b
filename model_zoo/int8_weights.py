"""Stores the weights of a frozen network in 8 bits: half the bytes of bf16, with a small error.

The linear layers and convolutions of the repeated blocks are stored as int8, with one scale per output channel. Each
forward pass turns the weights of a layer back into the dtype of its scale (bf16) just before it uses them. Linear
layers can also multiply in 8 bits (int8_products.py). All other weights stay as they are: those of the first and the
last layers, time embeddings, norms, biases and token embeddings.
"""

from torch import Tensor, nn
from torch.nn import functional

from randcond.model_zoo.int8_products import Int8Product, to_int8, widths_suit

DYNAMIC = "int8_dynamic"  # a value of `teacher.dtype` and `teacher.text_dtype`: linear layers multiply in 8 bits


def int8_kind(dtype: str) -> str:
    """Returns the setting `teacher.dtype` if it stores weights in 8 bits, otherwise ""."""
    return dtype if dtype in ("int8", DYNAMIC) else ""


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


def takes_int8(name: str, module: nn.Module) -> bool:
    """Returns True if `store_in_int8` replaces this module of a network: a layer inside of a numbered block."""
    if not any(part.isdigit() for part in name.split(".")):
        return False
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.padding_mode == "zeros")


def multiplies_in_int8(name: str, layer: nn.Linear) -> bool:
    """Returns True if `store_in_int8` makes this layer of a network multiply in 8 bits, where that is asked for.

    The layers that see one row per sample keep their precision: modulations (`norm1.linear`) and embeddings of the time
    (`time_emb_proj`). They are small, and their errors would reach every position of an image.
    """
    one_row = any(part.startswith("norm") or "emb" in part for part in name.split("."))
    return not one_row and widths_suit(layer)


def store_in_int8(network: nn.Module, kind: str = "int8") -> tuple[int, int]:
    """Stores the weights of a frozen network in 8 bits, in place.

    kind: the setting `teacher.dtype`, `int8` or `int8_dynamic`.
    Returns the number of layers that are stored so, and the number of all linear layers and convolutions.
    """
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    taken = [(name, module) for name, module in layers if takes_int8(name, module)]
    for name, module in taken:
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, _stored(name, module, kind))
    return len(taken), len(layers)


def _stored(name: str, layer: nn.Linear | nn.Conv2d, kind: str) -> nn.Module:
    """Returns what replaces a layer."""
    if kind == DYNAMIC and isinstance(layer, nn.Linear) and multiplies_in_int8(name, layer):
        return Int8Product(layer)
    return Int8Layer(layer)


def int8_bytes(network: nn.Module) -> int:
    """Returns the bytes that a network takes whose weights are stored in 8 bits, and the others in bf16.

    The network may be on the meta device.
    """
    taken = [module.weight for name, module in network.named_modules() if takes_int8(name, module)]
    saved = sum(weight.numel() - 2 * weight.shape[0] for weight in taken)  # a scale has 2 bytes
    return 2 * sum(each.numel() for each in network.parameters()) - saved
