"""The EMA of the master weights on this rank: on the device, or in the host's memory.

`engine.ema: cpu` takes 4 bytes per parameter off the device. A thread copies the weights to the host and averages them
there, while the device computes the next step's passes.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 24  # values that are copied to the host at once


class Ema:
    """EMA of weights on their device. It starts at their values."""

    def __init__(self, weights: list[Tensor]) -> None:
        """`weights`: views [n] of the master weights, fp32."""
        self.weights, sizes = joined(weights)
        self.averages = [self._held(each) for each in self.weights]
        # Of each view. ZeRO keeps all master weights in one tensor, so that this is one operation instead of hundreds.
        self.average = [part for each, own in zip(self.averages, sizes, strict=True) for part in each.split(own)]

    def _held(self, weights: Tensor) -> Tensor:
        return weights.clone()

    def update(self, decay: float) -> None:
        """Averages the current weights in: ema = decay * ema + (1 - decay) * weights."""
        if self.weights:
            torch._foreach_lerp_(self.averages, self.weights, 1 - decay)

    def finish(self) -> None:
        """Waits until the last update is finished. To be called before the weights change or the average is used."""

    def close(self) -> None:
        """Ends what the EMA started."""


class HostEma(Ema):
    """EMA in the host's memory, updated by a thread. The values are the same as on the device.

    On a GPU the same operation rounds differently at most: by one unit in the last place per update.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__(weights)
        on_gpu = bool(weights) and weights[0].device.type == "cuda"
        largest = max((each.numel() for each in self.weights), default=0)
        self.copied = torch.empty(min(CHUNK, largest), pin_memory=on_gpu)
        self._stream = torch.cuda.Stream() if on_gpu else None
        # A new thread begins on the first GPU. Without this, every rank would take memory there.
        choice = (torch.cuda.set_device, (weights[0].device,)) if on_gpu else (None, ())
        self._thread = ThreadPoolExecutor(1, "ema", *choice)
        self._pending: Future[None] | None = None

    def _held(self, weights: Tensor) -> Tensor:
        return weights.to("cpu", copy=True)

    def update(self, decay: float) -> None:
        """Starts to average the current weights in. They must not change before `finish` has returned."""
        self.finish()
        ready = torch.cuda.current_stream().record_event() if self._stream else None
        self._pending = self._thread.submit(self._update, decay, ready)

    def _update(self, decay: float, ready: Any) -> None:
        if self._stream:
            self._stream.wait_event(ready)  # the step that computed the weights may still be running
        for weights, average in zip(self.weights, self.averages, strict=True):
            for start in range(0, weights.numel(), CHUNK):
                part = weights[start : start + CHUNK]
                copied = self.copied[: part.numel()]
                with torch.cuda.stream(self._stream):
                    copied.copy_(part, non_blocking=True)
                if self._stream:
                    self._stream.synchronize()
                average[start : start + CHUNK].lerp_(copied, 1 - decay)

    def finish(self) -> None:
        """Waits until the last update is finished. Raises its error, if it failed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()


def joined(views: list[Tensor]) -> tuple[list[Tensor], list[list[int]]]:
    """Joins views [n] that lie one behind the other in the same storage.

    Returns the joined views, and for each the sizes of those that it is made of.
    """
    runs: list[list[Tensor]] = []
    for view in views:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and view.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
            and view.storage_offset() == last.storage_offset() + last.numel()
        ):
            runs[-1].append(view)
        else:
            runs.append([view])
    sizes = [[view.numel() for view in run] for run in runs]
    return [run[0].as_strided((sum(own),), (1,)) for run, own in zip(runs, sizes, strict=True)], sizes


def build_ema(where: str, weights: list[Tensor]) -> Ema | None:
    """Returns the EMA for `engine.ema`: device, cpu or off (None)."""
    return None if where == "off" else {"device": Ema, "cpu": HostEma}[where](weights)
