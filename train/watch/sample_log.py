"""The log of the samples that each step trained on (`train.log_samples`)."""

import json
from pathlib import Path

from randcond.data.stream.batch import Batch
from randcond.launch.runtime.files import naming_full_disk, remove
from randcond.launch.runtime.json_lines import lines_up_to

COLUMNS = ("key", "timesteps", "noise_seed", "caption_id")


class SampleLog:
    """Appends to samples/rank-NNNN.jsonl in the run folder."""

    def __init__(self, folder: Path, rank: int, enabled: bool) -> None:
        """Opens the file. If not `enabled`, nothing is written."""
        path = folder / "samples" / f"rank-{rank:04d}.jsonl"
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = path.open("a", buffering=1) if enabled else None

    def add(self, step: int, batch: Batch) -> None:
        """Writes a line for one micro-batch, with the fields `COLUMNS` of the batch."""
        if self.lines:
            columns = {name: getattr(batch, name).tolist() for name in COLUMNS}
            with naming_full_disk(Path(self.lines.name)):
                self.lines.write(json.dumps({"step": step, **columns}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        if self.lines:
            self.lines.close()


def drop_samples_after(folder: Path, step: int) -> None:
    """Removes the lines after `step` from every rank's file, because the resumed run writes them again.

    Rank 0 calls it before any rank trains.
    """
    for path in (folder / "samples").glob("rank-*.jsonl"):
        if step:
            lines_up_to(path, step)
        else:
            remove(path)
