"""Watching a run: TensorBoard, one JSON line per logging step, a progress line with an ETA.

Sums stay on the device between logging steps; only there are they reduced over the ranks and read.
"""

import json
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from randcond.launch.config.gpus import gpu_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.json_lines import lines_up_to
from randcond.launch.runtime.progress import Progress
from randcond.train.engine import Engine
from randcond.train.step import Losses
from randcond.train.watch.timing import DataStalls

BINS = 10  # of the timestep axis


class NonFiniteError(UserError):
    """A loss or the gradient is no longer a number."""


class Monitor:
    """Collects the losses of each micro-batch and writes them every `train.log_every` steps."""

    def __init__(self, config: Config, engine: Engine, timesteps: int, first: int, flop: int) -> None:
        """`first`: steps done before; `flop`: floating-point operations of distilling one sample."""
        self.engine, self.timesteps, self.flop = engine, timesteps, flop
        self.train = config.train
        self.peak = peak_flops(config)
        self.chief = engine.rank == 0
        self.bar = Progress(total=self.train.steps, initial=first, desc="training", unit="step", disable=not self.chief)
        self.began, self.at = time.monotonic(), first
        self.now = first + 1
        self.waiting = DataStalls(self.engine.device)
        self._names: list[str] = []
        self._reset()
        if self.chief:
            from torch.utils.tensorboard import SummaryWriter

            folder = Path(config.paths.run)
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)
            self.lines = lines_up_to(folder / "metrics.jsonl", first).open("a", buffering=1)

    def _reset(self) -> None:
        device = self.engine.device
        self._terms = _Sums(device)
        self._norm = _Sums(device)
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)  # samples, replaced, sum of Eq. 1

    def add(self, losses: Losses, batch: dict[str, Tensor]) -> None:
        """Adds one micro-batch; no value is read here, so nothing waits for the device."""
        self._names = [f"loss/{name}" for name in losses.terms]
        self._terms.add(torch.stack([term.double() for term in losses.terms.values()]), self.now)
        device = self.engine.device
        place = batch["timesteps"].to(device, non_blocking=True) * BINS // self.timesteps
        sound = losses.per_sample.isfinite()
        error = torch.where(sound, losses.per_sample, 0.0)
        rows = torch.stack([sound, batch["replaced"].to(device, non_blocking=True) & sound, error])
        self._bins.index_add_(1, place, rows.double())

    def step(self, step: int, lr: float, norm: Tensor | float, milestone: bool) -> None:
        """Ends one step; every `log_every` steps, and at milestones, reduces over the ranks, checks and writes.

        Raises NonFiniteError naming step, term and rank when one was not finite: no checkpoint is written after it.
        """
        self.bar.update()
        self._norm.add(torch.as_tensor(norm, dtype=torch.float64, device=self.engine.device).reshape(1), step)
        self.now = step + 1
        if step % self.train.log_every and not milestone:
            return
        names = [*self._names, "grad_norm"]
        waited = torch.tensor([self.waiting.seconds()], dtype=torch.float64, device=self.engine.device)
        mine = [self._terms.values, self._norm.values, self._terms.counts, self._norm.counts, waited]
        summed = self.engine.all_sum(torch.cat([*mine, self._bins.flatten()])).tolist()
        size = len(names)
        sums, counts, (waited_s,) = summed[:size], summed[size : 2 * size], summed[2 * size : 2 * size + 1]
        whole = [self._terms.added * self.engine.ranks] * (size - 1) + [self._norm.added * self.engine.ranks]
        if counts != whole and not self._may_go_on():
            raise NonFiniteError(self._what_was_not_finite(names))
        now = time.monotonic()
        spent = now - self.began
        speed = (step - self.at) * self.train.global_batch / spent
        self.began, self.at = now, step
        if self.chief:
            means = {name: value / max(1.0, n) for name, value, n in zip(names, sums, counts, strict=True)}
            record = {**means, "lr": lr, **self._speeds(step, speed), "data_wait": waited_s / self.engine.ranks / spent}
            record["memory_gb"] = memory() / 1e9
            if self.train.skip_nonfinite:
                record["skipped_steps"] = self.engine.skipped
            flat = summed[2 * size + 1 :]
            self._write(step, record, [flat[row * BINS : (row + 1) * BINS] for row in range(3)])
        self._reset()

    def _may_go_on(self) -> bool:
        return 0 < self.engine.skipped <= self.train.skip_nonfinite

    def _what_was_not_finite(self, names: list[str]) -> str:
        """The earliest step at which a value was not finite, with its terms and ranks."""
        steps = torch.cat([self._terms.first_bad, self._norm.first_bad]).long().tolist()
        found = [
            (step, name, rank)
            for rank, bad in enumerate(self.engine.collect(steps))
            for name, step in zip(names, bad, strict=True)
            if step
        ]
        first = min(step for step, _, _ in found)
        terms = [(name, rank) for step, name, rank in found if step == first]
        # A loss of one rank makes the gradient's norm, which all share, not finite on all of them.
        terms = [term for term in terms if term[0] != "grad_norm"] or terms
        said = ", ".join(f"{name} (rank {rank})" for name, rank in terms[:8])
        skipped = f" after {self.train.skip_nonfinite} skipped steps" if self.train.skip_nonfinite else ""
        return (
            f"training stopped{skipped}: not finite at step {first}: {said}. The last checkpoint is untouched; lower "
            "train.lr, look at the data, or leave such steps out with train.skip_nonfinite"
        )

    def _speeds(self, step: int, speed: float) -> dict[str, float]:
        one = speed / self.engine.ranks
        speeds = {
            "samples_per_s": speed,
            "samples_per_s_per_gpu": one,
            "tflops_per_gpu": one * self.flop / 1e12,
            "eta_s": (self.train.steps - step) * self.train.global_batch / speed,
        }
        if self.peak:
            speeds["mfu"] = one * self.flop / self.peak
        return speeds

    def _write(self, step: int, record: dict[str, Any], bins: list[list[float]]) -> None:
        samples, replaced, sums = bins
        record["replaced_share"] = sum(replaced) / max(1.0, sum(samples))
        width = self.timesteps // BINS
        for place in range(BINS):
            if samples[place]:
                span = f"t{place * width:03d}-{(place + 1) * width - 1:03d}"
                record[f"loss_by_timestep/{span}"] = sums[place] / samples[place]
                record[f"replaced_by_timestep/{span}"] = replaced[place] / samples[place]
        for name, value in record.items():
            self.board.add_scalar(name, value, step)
        self.lines.write(json.dumps({"step": step, **record}) + "\n")
        shown = {"loss": f"{record['loss/total']:.4f}", "samples_per_s": f"{record['samples_per_s']:.0f}"}
        if "mfu" in record:
            shown["mfu"] = f"{record['mfu']:.1%}"
        self.bar.set_postfix(shown)

    def scores(self, step: int, values: dict[str, float], spent: float) -> None:
        """What an evaluation of this step found; the seconds it took are no part of the training's speed."""
        self.began += spent
        if self.chief and values:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            self.lines.write(json.dumps({"step": step, **values}) + "\n")

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


class _Sums:
    """Sums of values that are finite, how many were, and the first step at which one was not; all on the device."""

    def __init__(self, device: torch.device) -> None:
        self.added = 0
        self.values = self.counts = self.first_bad = torch.zeros(0, dtype=torch.float64, device=device)

    def add(self, values: Tensor, step: int) -> None:
        """Adds one value per term [K]."""
        if not self.added:
            self.values, self.counts, self.first_bad = (torch.zeros_like(values) for _ in range(3))
        sound = values.isfinite()
        self.added += 1
        self.values += torch.where(sound, values, 0.0)
        self.counts += sound
        self.first_bad = torch.where(~sound & (self.first_bad == 0), step, self.first_bad)


def peak_flops(config: Config) -> float | None:
    """Dense bf16 operations per second of this rank's GPU, None where it is not known (or there is none)."""
    if config.engine.peak_tflops is not None:
        return config.engine.peak_tflops * 1e12
    gpu = gpu_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return gpu.tflops * 1e12 if gpu else None


def memory() -> int:
    """Bytes this rank holds at most: of its GPU since the start, or of the machine now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
