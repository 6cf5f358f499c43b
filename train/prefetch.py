"""The next micro-batch, made ready while the device still has the one before to compute."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from randcond.train.step import to_device

Around = Callable[[], AbstractContextManager[None]]


class Prefetcher:
    """A loader's micro-batches, each read, given its noise and sent to the device before it is asked for.

    `fetch` belongs between the forward pass and the backward: a GPU still has the former to do, while the backward of
    DeepSpeed's stage 3 and every engine's step end in a wait for it. On a CPU only the order is another.
    What fails in `fetch` is raised by `take`: the step before it is done, and saved if it is a milestone.
    """

    def __init__(self, loader: Iterator[dict[str, Any]], device: torch.device, waiting: Around = nullcontext) -> None:
        """`waiting`: entered around what waits for the loader."""
        self.loader, self.device, self.waiting = loader, device, waiting
        self._ready: dict[str, Any] | None = None
        self._failed: Exception | None = None

    def fetch(self) -> None:
        """Makes the next micro-batch ready, where there is one and none is ready yet."""
        if self._ready is not None or self._failed is not None:
            return
        try:
            with self.waiting():
                batch = next(self.loader)
            self._ready = to_device(batch, self.device)
        except StopIteration as end:  # behind the last one; its traceback would hold the step's tensors
            self._failed = end.with_traceback(None)
        except Exception as error:
            self._failed = error

    def take(self) -> dict[str, Any]:
        """The next micro-batch; raises what its fetching raised."""
        self.fetch()
        if self._ready is None:
            assert self._failed is not None
            raise self._failed
        batch, self._ready = self._ready, None
        return batch
