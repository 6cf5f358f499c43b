"""Monitoring of a run: one line per logging step in metrics.jsonl, the sinks, a progress line with the ETA.

Between logging steps, all sums stay on the device. At a logging step they are reduced over the ranks and read.
"""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import torch
from torch import Tensor

from randcond.data.stream.batch import Batch
from randcond.launch.config.experiments import shown_dict
from randcond.launch.config.gpus import gpu_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import naming_full_disk
from randcond.launch.runtime.json_lines import lines_up_to, whole_lines
from randcond.launch.runtime.progress import Progress
from randcond.train.engine import Engine
from randcond.train.sinks.open_sinks import open_sinks
from randcond.train.sinks.sink import RunFacts, Sink
from randcond.train.step import Losses
from randcond.train.watch.timing import DataStalls

BINS = 10  # of the timesteps, for losses by timestep


class NonFiniteError(UserError):
    """A loss or the gradient norm is NaN or infinite."""


class Monitor:
    """Collects the losses of each micro-batch and writes them every `train.log_every` steps."""

    def __init__(self, config: Config, engine: Engine, timesteps: int, first: int, flop: int) -> None:
        """Opens the log files on rank 0 and drops what they hold after step `first`.

        `timesteps`: T; `first`: the step that the run resumes from; `flop`: floating-point operations of one sample.
        """
        self.engine, self.timesteps, self.flop = engine, timesteps, flop
        self.train, self.folder = config.train, Path(config.paths.run)
        self.peak = peak_flops(config)
        self.is_rank_0 = engine.rank == 0
        self.bar = Progress(
            total=self.train.steps, initial=first, desc="training", unit="step", disable=not self.is_rank_0
        )
        self.data_stalls = DataStalls(self.engine.device)
        self._interval_start, self._interval_step = time.monotonic(), first  # where the current logging interval began
        self._current_step = first + 1
        self._names: list[str] = []
        self._reset()
        self.sinks: list[Sink] = []
        if self.is_rank_0:
            self.metrics_file = lines_up_to(self.folder / "metrics.jsonl", first).open("a", buffering=1)
            name = f"{config.name} {config.replicate}".strip()
            history = tuple((line.pop("step"), line) for _, line in whole_lines(self.folder / "metrics.jsonl"))
            facts = RunFacts(name, config.watch.project, self.folder, first, shown_dict(config), history)
            self.sinks = open_sinks(config, facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the sinks after an error, so that trackers get what is waiting. Its own errors would hide that one."""
        for sink in self.sinks if kind else []:
            with suppress(Exception):
                sink.close(finished=False)

    def _reset(self) -> None:
        device = self.engine.device
        self._terms = _FiniteSums(device)
        self._norm = _FiniteSums(device)
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)  # samples, replaced, sum of Eq. 1

    def add(self, losses: Losses, batch: Batch) -> None:
        """Adds the losses of one micro-batch. Does not wait for the device."""
        self._names = [f"loss/{name}" for name in losses.terms]
        self._terms.add(torch.stack([term.double() for term in losses.terms.values()]), self._current_step)
        device = self.engine.device
        bin_index = (batch.timesteps.to(device, non_blocking=True) * BINS // self.timesteps).long().clamp(max=BINS - 1)
        finite = losses.per_sample.isfinite()
        error = torch.where(finite, losses.per_sample, 0.0)
        rows = torch.stack([finite, batch.replaced.to(device, non_blocking=True) & finite, error])
        self._bins.index_add_(1, bin_index, rows.double())

    def step(self, step: int, lr: float, norm: Tensor | float, milestone: bool) -> None:
        """Ends a step. Every `log_every` steps, and at milestones, reduces over the ranks, checks and logs the values.

        `norm`: the gradient norm, a scalar. Every rank must call it.
        Raises NonFiniteError naming step, term and rank if a value was NaN or infinite since the last logging step.
        """
        self.bar.update()
        self._norm.add(torch.as_tensor(norm, dtype=torch.float64, device=self.engine.device).reshape(1), step)
        self._current_step = step + 1
        if step % self.train.log_every and not milestone:
            return
        names = [*self._names, "grad_norm"]
        stalled = torch.tensor([self.data_stalls.seconds()], dtype=torch.float64, device=self.engine.device)
        local = [self._terms.sums, self._norm.sums, self._terms.counts, self._norm.counts, stalled]
        summed = self.engine.all_sum(torch.cat([*local, self._bins.flatten()])).tolist()
        size = len(names)
        sums, counts, (stalled_s,) = summed[:size], summed[size : 2 * size], summed[2 * size : 2 * size + 1]
        expected = [self._terms.added * self.engine.ranks] * (size - 1) + [self._norm.added * self.engine.ranks]
        if counts != expected and not self._within_skip_limit():
            raise NonFiniteError(self._nonfinite_message(names))
        now = time.monotonic()
        elapsed = now - self._interval_start
        speed = (step - self._interval_step) * self.train.global_batch / elapsed  # samples per second
        self._interval_start, self._interval_step = now, step
        if self.is_rank_0:
            means = {name: value / max(1.0, n) for name, value, n in zip(names, sums, counts, strict=True)}
            data_wait = stalled_s / self.engine.ranks / elapsed
            record = {**means, "lr": lr, **self._speeds(step, speed), "data_wait": data_wait}
            record["memory_gb"] = memory_bytes() / 1e9
            if self.train.skip_nonfinite:
                record["skipped_steps"] = self.engine.skipped
            flat = summed[2 * size + 1 :]
            self._write(step, record, [flat[row * BINS : (row + 1) * BINS] for row in range(3)])
        self._reset()

    def _within_skip_limit(self) -> bool:
        return 0 < self.engine.skipped <= self.train.skip_nonfinite

    def _nonfinite_message(self, names: list[str]) -> str:
        """Returns an error message with the first step at which a value was NaN or infinite, its terms and ranks."""
        local = torch.cat([self._terms.first_nonfinite, self._norm.first_nonfinite]).long().tolist()
        found = [
            (step, name, rank)
            for rank, steps in enumerate(self.engine.collect(local))
            for name, step in zip(names, steps, strict=True)
            if step
        ]
        first = min(step for step, _, _ in found)
        terms = [(name, rank) for step, name, rank in found if step == first]
        # The gradient norm is the same on all ranks. If a loss is the cause, name only the loss and its rank.
        terms = [term for term in terms if term[0] != "grad_norm"] or terms
        listed = ", ".join(f"{name} (rank {rank})" for name, rank in terms[:8])
        skipped = f" after {self.train.skip_nonfinite} skipped steps" if self.train.skip_nonfinite else ""
        return (
            f"training stopped{skipped}: NaN or infinite at step {first}: {listed}. The last checkpoint is intact. "
            "Lower train.lr, check the data, or set train.skip_nonfinite to skip such steps"
        )

    def _speeds(self, step: int, speed: float) -> dict[str, float]:
        per_gpu = speed / self.engine.ranks
        speeds = {
            "samples_per_s": speed,
            "samples_per_s_per_gpu": per_gpu,
            "tflops_per_gpu": per_gpu * self.flop / 1e12,
            "eta_s": (self.train.steps - step) * self.train.global_batch / speed,
        }
        if self.peak:
            speeds["mfu"] = per_gpu * self.flop / self.peak
        return speeds

    def _write(self, step: int, record: dict[str, Any], bins: list[list[float]]) -> None:
        samples, replaced, sums = bins
        record["replaced_share"] = sum(replaced) / max(1.0, sum(samples))
        width = self.timesteps // BINS
        for index in range(BINS):
            if samples[index]:
                span = f"t{index * width:03d}-{(index + 1) * width - 1:03d}"
                record[f"loss_by_timestep/{span}"] = sums[index] / samples[index]
                record[f"replaced_by_timestep/{span}"] = replaced[index] / samples[index]
        self._write_values(step, record)
        shown = {"loss": f"{record['loss/total']:.4f}", "samples_per_s": f"{record['samples_per_s']:.0f}"}
        if "mfu" in record:
            shown["mfu"] = f"{record['mfu']:.1%}"
        self.bar.set_postfix(shown)

    def add_scores(self, step: int, values: dict[str, float], seconds: float) -> None:
        """Logs the scores of an evaluation. Its duration in seconds does not count as training time."""
        self._interval_start += seconds
        if self.is_rank_0 and values:
            self._write_values(step, values)

    def _write_values(self, step: int, values: dict[str, float]) -> None:
        with naming_full_disk(self.folder / "metrics.jsonl"):
            self.metrics_file.write(json.dumps({"step": step, **values}) + "\n")
        for sink in self.sinks:
            sink.values(step, values)

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Passes a picture on, a PNG file. Only rank 0 may call it."""
        for sink in self.sinks:
            sink.picture(step, name, path)

    def close(self, finished: bool = True) -> None:
        """Flushes and closes the files and sinks. finished: False if the run has failed, or will be resumed."""
        self.bar.close()
        if self.is_rank_0:
            with naming_full_disk(self.folder / "metrics.jsonl"):
                self.metrics_file.close()
        for sink in self.sinks:
            sink.close(finished)


class _FiniteSums:
    """Per term [K], on the device: the sum of the finite values, their number, and the first step with another value.

    `first_nonfinite` is 0 for a term whose values were all finite.
    """

    def __init__(self, device: torch.device) -> None:
        self.added = 0  # calls of add()
        self.sums = self.counts = self.first_nonfinite = torch.zeros(0, dtype=torch.float64, device=device)

    def add(self, values: Tensor, step: int) -> None:
        """Adds one value per term [K], fp64."""
        if not self.added:
            self.sums, self.counts, self.first_nonfinite = (torch.zeros_like(values) for _ in range(3))
        finite = values.isfinite()
        self.added += 1
        self.sums += torch.where(finite, values, 0.0)
        self.counts += finite
        self.first_nonfinite = torch.where(~finite & (self.first_nonfinite == 0), step, self.first_nonfinite)


def peak_flops(config: Config) -> float | None:
    """Returns the peak dense bf16 FLOP per second of this rank's GPU, or None if it is unknown or there is no GPU."""
    if config.engine.peak_tflops is not None:
        return config.engine.peak_tflops * 1e12
    gpu = gpu_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return gpu.tflops * 1e12 if gpu else None


def memory_bytes() -> int:
    """Returns the peak GPU memory of this rank since its start, in bytes. Without a GPU: its current host memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
