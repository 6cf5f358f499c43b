"""What families with one stack of transformer blocks on patches of latents share."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from randcond.model_zoo.families.base.family import Family


class Transformer(Family):
    """A family whose denoiser has `transformer_blocks`, `pos_embed`, and square latents of `sample_size`."""

    part = "transformer"

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def sides(self, config: Mapping[str, Any]) -> tuple[int, int | None]:
        """Latents are cut into patches. SD 3 has a table of positions, which the latents must not exceed."""
        patch, places = config.get("patch_size", 1), config.get("pos_embed_max_size")
        return patch, patch * places if places else None

    def text_length(self, lengths: Sequence[int]) -> int:
        """The text of the last encoder."""
        return lengths[-1]

    def blocks(self, network: Any) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def first_layer(self, network: Any) -> nn.Module:
        return network.pos_embed

    def default_rule(self, config: Mapping[str, Any]) -> str:
        """Half of the blocks."""
        return f"depth-{max(2, config['num_layers'] // 2)}"


def block_names(count: int, stack: str = "transformer_blocks") -> tuple[str, ...]:
    """Returns the names of the `count` blocks of a stack."""
    return tuple(f"{stack}.{number}" for number in range(count))


def text_mask(ids: Tensor, padding: int) -> Tensor:
    """Returns 1 for the tokens of a text and 0 for those of the padding behind it, int64 [B, L].

    ids: token ids [B, L]. padding: the id of padding, which may also stand in the text.

    >>> import torch
    >>> text_mask(torch.tensor([[5, 0, 7, 0, 0]]), 0)
    tensor([[1, 1, 1, 0, 0]])
    """
    return (ids != padding).long().flip(1).cummax(1).values.flip(1)
