"""Reads a model folder's tensors by name, one at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from randcond.launch.errors import UserError


class StoredTensors(Mapping[str, Tensor]):
    """Mapping from name to tensor for a model folder, which holds one safetensors file or several.

    A tensor is read when it is accessed, in its stored shape and dtype.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError naming a file that is damaged."""
        files = [path for path in sorted(folder.glob("*.safetensors")) if len(path.suffixes) == 1]
        opened = [_open(path) for path in files]
        self._files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (not a dict)

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each tensor, without reading it."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None
