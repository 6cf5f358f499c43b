"""A log of the samples that each step saw, cut back where a resumed run goes on."""

import json
from pathlib import Path
from typing import Any

from randcond.launch.runtime.files import remove
from randcond.launch.runtime.json_lines import lines_up_to

COLUMNS = ("key", "timesteps", "noise_seed", "caption_id")


class SampleLog:
    """Appends to samples/rank-NNNN.jsonl of the run's folder."""

    def __init__(self, folder: Path, rank: int, wanted: bool) -> None:
        path = folder / "samples" / f"rank-{rank:04d}.jsonl"
        if wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = path.open("a", buffering=1) if wanted else None

    def add(self, step: int, batch: dict[str, Any]) -> None:
        """Writes the samples of one micro-batch."""
        if self.lines:
            self.lines.write(json.dumps({"step": step, **{name: batch[name].tolist() for name in COLUMNS}}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        if self.lines:
            self.lines.close()


def forget_samples_after(folder: Path, step: int) -> None:
    """Drops what a resumed run sees again, in every rank's file; the first rank does it before any goes on."""
    for path in (folder / "samples").glob("rank-*.jsonl"):
        if step:
            lines_up_to(path, step)
        else:
            remove(path)
