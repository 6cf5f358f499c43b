"""Prefetches the next micro-batch while the device still computes the current one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from randcond.data.stream.batch import Batch
from randcond.train.step import to_device

ContextFactory = Callable[[], AbstractContextManager[None]]


class Prefetcher:
    """Reads micro-batches from a loader, draws their noise and sends both to the device before they are needed.

    Call fetch() between the forward pass and the backward pass. The GPU is then still busy with the forward pass.
    Later in the step it is too late: the backward of DeepSpeed's stage 3, and the step() of every engine, end with a
    wait for the GPU. On a CPU, prefetching changes the order of the work but not its duration.
    Errors in fetch() are re-raised by take(), so that the current step is finished, and saved if it is a milestone.
    """

    def __init__(self, loader: Iterator[Batch], device: torch.device, time_wait: ContextFactory = nullcontext) -> None:
        """`time_wait` makes a context that is entered while this object waits for the loader (`DataStalls.wait`)."""
        self.loader, self.device, self.time_wait = loader, device, time_wait
        self._batch: Batch | None = None
        self._error: Exception | None = None

    def fetch(self) -> None:
        """Prepares the next micro-batch. Does nothing if one is ready already, or after an error."""
        if self._batch is not None or self._error is not None:
            return
        try:
            with self.time_wait():
                batch = next(self.loader)
            self._batch = to_device(batch, self.device)
        except StopIteration as end:  # after the last batch; a traceback would keep the tensors of the step in memory
            self._error = end.with_traceback(None)
        except Exception as error:
            self._error = error

    def take(self) -> Batch:
        """Returns the next micro-batch, as `to_device` describes it. Raises the error of fetch(), if it failed."""
        self.fetch()
        if self._batch is None:
            assert self._error is not None
            raise self._error
        batch, self._batch = self._batch, None
        return batch
