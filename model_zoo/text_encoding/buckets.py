"""Encodes captions of similar length together, cropped to that length, where the denoiser's mask hides the padding.

Most captions have some 30 tokens, but T5 would compute all 300 of PixArt. The padding changes nothing: the text
encoder's mask hides it from the caption's own tokens, and the denoiser's mask hides it from the image.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from randcond.model_zoo.families.base.family import Condition
from randcond.model_zoo.text_encoding.transfer import to_device

EDGES = (32, 64, 128)  # tokens; longer captions have the full length
Encode = Callable[[Tensor, Tensor | None], Condition]  # (token ids [B, L], null [B]) -> condition


def lengths_of(ids: Tensor, padding: int) -> Tensor:
    """Returns the number of tokens of each text, int64 [B]: up to the last one that is not padding.

    >>> lengths_of(torch.tensor([[5, 0, 7, 0, 0], [0, 0, 0, 0, 0]]), 0).tolist()
    [3, 0]
    """
    places = torch.arange(1, ids.shape[1] + 1)
    return ((ids != padding) * places).amax(1)


def in_buckets(
    encode: Encode, ids: Tensor, null: Tensor | None, padding: int, masked: Sequence[str], device: torch.device
) -> Condition:
    """Returns the condition of B captions, encoded bucket by bucket.

    ids: int64 [B, L], on the CPU. null: bool [B]. padding: the id of padding. masked: the keys of the condition that
    have one entry per token, [B, L, ...]; their padding is 0. device: of the condition.
    """
    whole, lengths = ids.shape[1], lengths_of(ids, padding)
    parts: list[Condition] = []
    order: list[Tensor] = []
    previous = -1
    for edge in [*(edge for edge in EDGES if edge < whole), whole]:
        rows = ((lengths > previous) & (lengths <= edge)).nonzero().flatten()
        previous = edge
        if not len(rows):
            continue
        part = encode(ids[rows, :edge], None if null is None else null[rows])
        parts.append({key: padded(value, whole) if key in masked else value for key, value in part.items()})
        order.append(rows)
    if len(parts) == 1:
        return parts[0]
    places = to_device(torch.cat(order).argsort(), device)
    return {key: torch.cat([part[key] for part in parts]).index_select(0, places) for key in parts[0]}


def padded(value: Tensor, length: int) -> Tensor:
    """Pads [B, l, ...] with zeros to [B, length, ...]."""
    return functional.pad(value, (0, 0) * (value.dim() - 2) + (0, length - value.shape[1]))
