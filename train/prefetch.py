"""Prefetches the next micro-batch while the device still computes the current one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from randcond.data.stream.batch import Batch
from randcond.model_zoo.families.base.family import Condition
from randcond.train.step import to_device

ContextFactory = Callable[[], AbstractContextManager[None]]


class Prefetcher:
    """Reads micro-batches from a loader, draws their noise and sends both to the device before they are needed.

    It can encode their captions, too. On a GPU they are encoded on a CUDA stream of their own, beside the backward pass
    of the step before.

    Call fetch() between the forward pass and the backward pass. The GPU is then still busy with the forward pass.
    Later in the step it is too late: the backward of DeepSpeed's stage 3, and the step() of every engine, end with a
    wait for the GPU. On a CPU, prefetching changes the order of the work but not its duration.
    Errors in fetch() are re-raised by take(), so that the current step is finished, and saved if it is a milestone.
    """

    def __init__(
        self,
        loader: Iterator[Batch],
        device: torch.device,
        time_wait: ContextFactory = nullcontext,
        encode: Callable[[Batch], Condition] | None = None,
    ) -> None:
        """`time_wait` makes a context that is entered while this object waits for the loader (`DataStalls.wait`).

        `encode` encodes the captions of a micro-batch. None: the step does.
        """
        self.loader, self.device, self.time_wait, self.encode = loader, device, time_wait, encode
        self._batch: Batch | None = None
        self._error: Exception | None = None
        self._stream: torch.cuda.Stream | None = None
        if encode is not None and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # the encoders' weights are there

    def fetch(self) -> None:
        """Prepares the next micro-batch. Does nothing if one is ready already, or after an error."""
        if self._batch is not None or self._error is not None:
            return
        try:
            with self.time_wait():
                batch = next(self.loader)
            self._batch = self._encoded(to_device(batch, self.device))
        except StopIteration as end:  # after the last batch; a traceback would keep the tensors of the step in memory
            self._error = end.with_traceback(None)
        except Exception as error:
            self._error = error

    def _encoded(self, batch: Batch) -> Batch:
        if self.encode is None:
            return batch
        with torch.cuda.stream(self._stream):  # does nothing without one
            return replace(batch, condition=self.encode(batch))

    def take(self) -> Batch:
        """Returns the next micro-batch, as `to_device` describes it. Raises the error of fetch(), if it failed."""
        self.fetch()
        if self._batch is None:
            assert self._error is not None
            raise self._error
        batch, self._batch = self._batch, None
        if self._stream is not None and batch.condition is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for value in batch.condition.values():
                value.record_stream(current)  # the stream that made it must not reuse its memory before the step ends
        return batch
