"""What families with one stack of transformer blocks on patches of latents share."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from randcond.model_zoo.families.base.family import Family


class Transformer(Family):
    """A family whose denoiser has `transformer_blocks`, `pos_embed`, and square latents of `sample_size`."""

    part = "transformer"

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def blocks(self, network: Any) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def first_layer(self, network: Any) -> nn.Module:
        return network.pos_embed

    def default_rule(self, config: Mapping[str, Any]) -> str:
        """Half of the blocks."""
        return f"depth-{config['num_layers'] // 2}"


def block_names(count: int, stack: str = "transformer_blocks") -> tuple[str, ...]:
    """Returns the names of the `count` blocks of a stack."""
    return tuple(f"{stack}.{number}" for number in range(count))
