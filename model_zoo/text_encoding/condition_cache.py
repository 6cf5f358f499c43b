"""Keeps the conditions of captions in the host's memory, so that a small caption pool is encoded only once."""

from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from randcond.model_zoo.families.base.family import Condition
from randcond.model_zoo.text_encoding.transfer import to_device

# (token ids [B, L] of each text encoder, null [B]) -> condition
Encode = Callable[[list[Tensor], Tensor | None], Condition]
CHUNK = 8  # captions that are encoded at once


class ConditionCache:
    """A bounded cache: caption -> its condition. The caption that was not used for longest makes room.

    Its `encode` must work in chunks (in_chunks()), so that a condition has the same bits whatever was in the cache. A
    run that is resumed with an empty cache then trains the same student.
    """

    def __init__(self, limit: float) -> None:
        """limit: in bytes."""
        self.limit, self.bytes = limit, 0
        self._rows: OrderedDict[bytes, Condition] = OrderedDict()

    def __call__(self, encode: Encode, ids: list[Tensor], null: Tensor | None, device: torch.device) -> Condition:
        """Returns the condition of B captions on a device.

        ids: int64 [B, L] per text encoder, on the CPU. null: bool [B], on the CPU.
        """
        keys = list(_keys(ids, null))
        new = {key: row for row, key in enumerate(keys) if key not in self._rows}
        if new:
            rows = torch.tensor(list(new.values()))
            encoded = encode([each[rows] for each in ids], None if null is None else null[rows])
            on_host = {name: value.cpu() for name, value in encoded.items()}
            for place, key in enumerate(new):
                self._rows[key] = {name: value[place].clone() for name, value in on_host.items()}
                self.bytes += _bytes(self._rows[key])
        found = [self._rows[key] for key in keys]
        for key in dict.fromkeys(keys):
            self._rows.move_to_end(key)
        while self.bytes > self.limit and self._rows:
            _, oldest = self._rows.popitem(last=False)
            self.bytes -= _bytes(oldest)
        return {name: to_device(torch.stack([row[name] for row in found]), device) for name in found[0]}


def in_chunks(encode: Encode, ids: list[Tensor], null: Tensor | None) -> Condition:
    """Returns what `encode` does, but calls it with CHUNK captions at a time; the last ones are padded."""
    count = len(ids[0])
    parts = []
    for start in range(0, count, CHUNK):
        rows = torch.arange(start, start + CHUNK).clamp(max=count - 1)
        parts.append(encode([each[rows] for each in ids], None if null is None else null[rows]))
    return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}


def _keys(ids: list[Tensor], null: Tensor | None) -> Iterator[bytes]:
    """Yields what tells captions apart: their token ids, and whether they are null."""
    for row in range(len(ids[0])):
        yield b"".join(each[row].numpy().tobytes() for each in ids) + bytes([null is not None and bool(null[row])])


def _bytes(condition: Condition) -> int:
    return sum(value.nbytes for value in condition.values())
