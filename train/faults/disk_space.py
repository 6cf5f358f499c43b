"""Whether a run's folder can take what the run will write, asked before the first step."""

import os
import shutil
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.train.engine import STATE_KINDS

_STUDENTS = 2 * 4  # bytes per parameter of the exported raw and EMA students, fp32
_DRAWN, _BEST = 2, 4  # of a U-Net evaluated while training, in half precision at least, and of the best exported
_REST = 50_000_000  # logs, TensorBoard, pictures


def check_folder(folder: Path, parameters: int, keep: int, evaluations: int = 0) -> None:
    """Raises UserError naming the folder when it can't be written or its disk lacks the space, with the arithmetic.

    `parameters`: of the trained module; `keep`: checkpoints that are there in the end, beside the one being written;
    `evaluations`: still to come, each of which keeps the U-Net that drew; one at least is exported as the best.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise UserError(f"paths.run: {folder} can't be written ({error.strerror}); give another paths.run") from None
    checkpoint = 4 * len(STATE_KINDS) * parameters
    there = sum(1 for _ in (folder / "checkpoints").glob("step-*"))
    wanted = max(1, keep + 1 - there) * checkpoint + _STUDENTS * parameters + _REST
    wanted += (_DRAWN * evaluations + (_BEST if evaluations else 0)) * parameters
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(
            f"paths.run: {folder} has {free / 1e9:.1f} GB free, this run writes {wanted / 1e9:.1f} GB more: "
            f"{keep} kept checkpoints and the next one of {checkpoint / 1e9:.1f} GB each, the students"
            f"{f', and those of {evaluations} evaluations' if evaluations else ''}. "
            "Free some, give another paths.run, or lower train.keep_checkpoints"
        )
