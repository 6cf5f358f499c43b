"""Encodes each caption of a batch once: 10 % of a batch are null captions, and a language model takes its time."""

import torch
from torch import Tensor

from randcond.model_zoo.families.base.family import Condition
from randcond.model_zoo.text_encoding.condition_cache import Encode
from randcond.model_zoo.text_encoding.transfer import to_device


def once_each(encode: Encode, ids: list[Tensor], null: Tensor | None, device: torch.device) -> Condition:
    """Returns the condition of B captions on a device. `encode` is given each caption once, in their order.

    ids: int64 [B, L] per text encoder, on the CPU. null: bool [B], on the CPU.
    """
    count = len(ids[0])
    columns = [*ids, *([] if null is None else [null.long()[:, None]])]
    _, same = torch.cat(columns, dim=1).unique(dim=0, return_inverse=True)  # [B]: which caption
    numbers = torch.arange(count)
    first = torch.full((count,), count).scatter_reduce(0, same, numbers, "amin")  # of each caption; count: none
    rows = first[first < count].sort().values
    if len(rows) == count:
        return encode(ids, null)
    encoded = encode([each[rows] for each in ids], None if null is None else null[rows])
    places = to_device(torch.searchsorted(rows, first[same]), device)
    return {key: value.index_select(0, places) for key, value in encoded.items()}
