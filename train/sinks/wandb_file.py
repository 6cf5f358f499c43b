"""Reads which steps an offline run of W&B holds.

W&B writes blocks of 32 KiB. What a killed run had not filled into a block is lost, so a resumed one must look.
The file is a log in LevelDB's format, with a header of 7 bytes; its records are W&B's protocol buffers.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from randcond.train.sinks.sink import GRID, Sent

_BLOCK, _HEADER = 32768, 7  # bytes of a block, and of the header of the file and of each part of a record
_WHOLE, _FIRST, _LAST = 1, 2, 4  # kinds of parts


def sent_offline(run: Path, identity: str) -> Sent:
    """Returns the last steps that the offline files of a W&B run hold. run: the run's folder."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # has no types
    sent = Sent()
    for path in run.glob(f"wandb/offline-run-*/run-{identity}.wandb"):
        for data in records(path):
            record = messages.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                step, names = record.history.step.num, {"/".join(i.nested_key) or i.key for i in record.history.item}
                sent.values = max(sent.values, step * ("loss/total" in names))
                sent.scores = max(sent.scores, step * any(name.startswith("eval/") for name in names))
                sent.pictures = max(sent.pictures, step * any(name.startswith(GRID) for name in names))
    return sent


def records(path: Path) -> Iterator[bytes]:
    """Yields the records of a file. Leaves out a last one that is cut off."""
    data, place, part = path.read_bytes(), _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:  # the rest of a block is empty if no part fits
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEADER])
        body = data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        part = body if kind in (_WHOLE, _FIRST) else part + body
        if kind in (_WHOLE, _LAST) and len(body) == length > 0:
            yield part
