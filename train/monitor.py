"""Watching a run: TensorBoard, one JSON line per logging step, a progress line with an ETA.

Sums stay on the device between logging steps; only there are they reduced over the ranks and read.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from randcond.data.files import write_text
from randcond.train.engine import Engine
from randcond.train.step import Losses

BINS = 10  # of the timestep axis


class NonFiniteError(ValueError):
    """A loss is no longer a number."""


class Monitor:
    """Collects the losses of each micro-batch and writes them every `every` steps."""

    def __init__(
        self, folder: Path, engine: Engine, timesteps: int, first: int, last: int, batch: int, every: int
    ) -> None:
        self.engine, self.timesteps, self.batch, self.every = engine, timesteps, batch, every
        self.chief = engine.rank == 0
        self.bar = tqdm(total=last, initial=first, desc="training", unit="step", mininterval=2, disable=not self.chief)
        self.began, self.at = time.monotonic(), first
        self.last = last
        self._names: list[str] = []
        self._reset()
        if self.chief:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)
            self.lines = lines_up_to(folder / "metrics.jsonl", first).open("a", buffering=1)

    def _reset(self) -> None:
        self._sums: Tensor | None = None
        self._count = 0
        self._norm = torch.zeros(1, dtype=torch.float64, device=self.engine.device)
        self._bins = torch.zeros(3, BINS, device=self.engine.device)  # samples, replaced, sum of Eq. 1

    def add(self, losses: Losses, batch: dict[str, Tensor]) -> None:
        """Adds one micro-batch; no value is read here, so nothing waits for the device."""
        self._names = [*(f"loss/{name}" for name in losses.terms), "grad_norm"]
        values = torch.stack([term.double() for term in losses.terms.values()])
        self._sums = values if self._sums is None else self._sums + values
        self._count += 1
        device = self.engine.device
        place = batch["timesteps"].to(device) * BINS // self.timesteps
        ones = torch.ones_like(losses.per_sample)
        rows = torch.stack([ones, batch["replaced"].to(device).float(), losses.per_sample])
        self._bins.index_add_(1, place, rows)

    def step(self, step: int, lr: float, norm: Tensor | float, milestone: bool) -> None:
        """Ends one step; every `every` steps, and at milestones, reduces over the ranks, checks and writes.

        Raises NonFiniteError naming step, term and rank when a term is not finite: no checkpoint is written after it.
        """
        self.bar.update()
        self._norm += norm
        if step % self.every and not milestone:
            return
        assert self._sums is not None
        mine = torch.cat([self._sums / self._count, self._norm / (step - self.at)])
        bad = [name for name, value in zip(self._names, mine.tolist(), strict=True) if not math.isfinite(value)]
        means = (self.engine.all_sum(mine) / self.engine.ranks).tolist()
        bins = self.engine.all_sum(self._bins).tolist()
        if bad or not all(map(math.isfinite, means)):
            raise NonFiniteError(
                f"training stopped at step {step}: not finite: {', '.join(bad) or 'a term of another rank'} "
                f"(rank {self.engine.rank}). The last checkpoint is untouched; lower train.lr or look at the data."
            )
        now = time.monotonic()
        speed = (step - self.at) * self.batch / (now - self.began)
        self.began, self.at = now, step
        if self.chief:
            self._write(step, dict(zip(self._names, means, strict=True)), bins, lr, speed)
        self._reset()

    def _write(self, step: int, means: dict[str, float], bins: list[list[float]], lr: float, speed: float) -> None:
        samples, replaced, sums = bins
        eta = (self.last - step) * self.batch / speed
        record: dict[str, Any] = {**means, "lr": lr, "samples_per_s": speed, "eta_s": eta}
        record["replaced_share"] = sum(replaced) / sum(samples)
        width = self.timesteps // BINS
        for place in range(BINS):
            if samples[place]:
                span = f"t{place * width:03d}-{(place + 1) * width - 1:03d}"
                record[f"loss_by_timestep/{span}"] = sums[place] / samples[place]
                record[f"replaced_by_timestep/{span}"] = replaced[place] / samples[place]
        for name, value in record.items():
            self.board.add_scalar(name, value, step)
        self.lines.write(json.dumps({"step": step, **record}) + "\n")
        self.bar.set_postfix(loss=f"{means['loss/total']:.4f}", samples_per_s=f"{speed:.0f}")

    def picture(self, name: str, grid: Tensor, step: int) -> None:
        """A grid of images [3, H, W] in [0, 1] onto the board."""
        if self.chief:
            self.board.add_image(name, grid, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self.bar.close()
        if self.chief:
            self.board.close()
            self.lines.close()


def lines_up_to(path: Path, step: int) -> Path:
    """Drops the lines after a step, which a resumed run writes again, and a last line that was cut off."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))
    return path
