"""Checks before the first step that the run folder is writable and has enough disk space."""

import os
import shutil
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.train.engine import STATE_KINDS

# Bytes per parameter
_STUDENT = 4  # an exported student, fp32
_EVALUATED = 2  # a U-Net that is kept with its evaluation; 2 bytes is the minimum (half precision)
_BEST = _STUDENT

_LOGS = 50_000_000  # bytes of logs, TensorBoard files and sample grids


def check_folder(folder: Path, parameters: int, keep: int, evaluations: int = 0, ema: bool = True) -> None:
    """Raises UserError if the run folder is not writable, or if its disk is too small for what the run will write.

    `parameters`: of the trained module
    `keep`: the number of checkpoints at the end of the run; one more exists while a checkpoint is being written
    `evaluations`: the evaluations still to come; each keeps its U-Net, and at least one exports a best student
    `ema`: whether there are EMA weights in checkpoints, and a student with them
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise UserError(f"paths.run: {folder} is not writable ({error.strerror}); set another paths.run") from None
    checkpoint = 4 * (len(STATE_KINDS) - (not ema)) * parameters
    existing = sum(1 for _ in (folder / "checkpoints").glob("step-*"))
    needed = max(1, keep + 1 - existing) * checkpoint + (1 + ema) * _STUDENT * parameters + _LOGS
    needed += (_EVALUATED * evaluations + (_BEST if evaluations else 0)) * parameters
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"paths.run: {folder} has {free / 1e9:.1f} GB free, but this run needs {needed / 1e9:.1f} GB more, for "
            f"{keep} kept checkpoints and one being written ({checkpoint / 1e9:.1f} GB each), the exported students"
            f"{f', the U-Nets of {evaluations} evaluations' if evaluations else ''}. "
            "Free disk space, set another paths.run, or lower train.keep_checkpoints"
        )
