"""Turns one pickled weight file (.bin, .ckpt, .pt) into safetensors.

`python -m randcond.model_zoo.importing.unpickle IN OUT` is a process of its own. torch reads tensors only in it
(`weights_only`): what a pickle can execute is refused.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError

_REFUSED = 3  # exit code of a file that holds more than tensors
_UNREADABLE = 4
_UNWRITABLE = 5


def tensors_of_pickle(source: Path, target: Path) -> None:
    """Writes the tensors of a pickled file to `target` (safetensors), from another process.

    Raises UserError naming the file if it holds more than tensors, or is damaged.
    """
    words = [sys.executable, "-m", "randcond.model_zoo.importing.unpickle", str(source), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    reason = next(iter(done.stderr.strip().splitlines()[-1:]), "no reason given")
    if done.returncode == _REFUSED:
        raise UserError(
            f"{source}: holds more than tensors, or is damaged ({reason}); the rest of a pickle can execute code "
            f"and is not read: get the model as safetensors"
        )
    if done.returncode == _UNWRITABLE:
        raise UserError(f"{target.parent}: can't be written ({reason}); {source} needs as much space there for a while")
    raise UserError(f"{source}: can't be read ({reason}); download or copy it again")


def _state(value: Any) -> dict[str, Any]:
    """Returns the tensors by name. Some trainers nest them under "state_dict"."""
    while isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    return value if isinstance(value, dict) else {}


def main(source: Path, target: Path) -> int:
    """Writes the file; returns the exit code. The last line of the standard error says what is wrong."""
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=_is_zip(source))
    except Exception as error:  # damaged files raise many types
        reason = next(iter(str(error).splitlines()), "")
        print(f"{type(error).__name__}: {reason}", file=sys.stderr)
        return _REFUSED if type(error).__name__ == "UnpicklingError" else _UNREADABLE
    tensors = {name: value.clone().contiguous() for name, value in _state(loaded).items() if torch.is_tensor(value)}
    if not tensors:
        print("no tensors", file=sys.stderr)
        return _UNREADABLE
    try:
        save_file(tensors, target, metadata={"format": "pt"})
    except Exception as error:  # safetensors passes on the system's words alone
        print(error, file=sys.stderr)
        return _UNWRITABLE
    return 0


def _is_zip(source: Path) -> bool:
    """Returns True for the format that torch can map into memory."""
    with source.open("rb") as file:
        return file.read(2) == b"PK"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
