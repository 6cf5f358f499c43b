"""Times our training step against the published recipe's settings and against a bare step (`make bench`).

The sides run in interleaved rounds in one process, in rotating order. A ratio is the median over the rounds, with its
95 % interval. Each result is saved before the next measurement begins. A failure is recorded, and the bench continues.

`--sizes LIST`: by default world,mid on a CPU and b-base,b-tiny,c-micro,koala-700m on a GPU. `--rounds N`: the timed
rounds. `--switches all`, or a list such as "channels last;checkpointing": the gain of each optimisation alone over the
plain step, beside the prediction of the cost model. `--agree N`: how far the losses of N steps with this size's
settings are from the plain step's, and how far rounding alone moves them. `--profile`: the time of each op. `--alone`:
our step without the other sides. `--rehearse`: with tiny teachers. `--out FOLDER`: where results are saved. All other
words override keys of the experiment (engine.compile=none).
"""

import gc
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from randcond.data.stream.batch import Batch
from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.cost.flops import denoiser_cost
from randcond.model_zoo.denoiser.architecture import Architecture
from tests.bench.floor import elementwise_bytes, matmul_rate, memory_rate, products
from tests.bench.predicted import Floor, fp8_flop
from tests.bench.results import FOLDER, interval, save, write
from tests.bench.sides import PARTS, Sides, wait
from tests.bench.sizes import SIZES, TEACHERS, configured, default_sizes

T = TypeVar("T")
WARM_UP = 3  # rounds that don't count
PLAIN = ["engine.compile=none", "engine.attention=sdpa", "engine.channels_last=false"]
PLAIN += ["engine.teacher_graph=false", "engine.teacher_fp8=false", "engine.activation_checkpointing=false"]
PLAIN += ["engine.text_ahead=false"]
SWITCHES: dict[str, list[str]] = {
    "text ahead": ["engine.text_ahead=true"],
    "attention by race": ["engine.attention=auto"],
    "channels last": ["engine.channels_last=true"],
    "compiled blocks": ["engine.compile=blocks"],
    "compiled whole": ["engine.compile=whole"],
    "compiled whole, channels last": ["engine.compile=whole", "engine.channels_last=true"],
    "compiled whole, teacher's graph": ["engine.compile=whole", "engine.teacher_graph=true"],
    "compiled whole, teacher in fp8": ["engine.compile=whole", "engine.teacher_fp8=true"],
    "checkpointing": ["engine.activation_checkpointing=true"],
    "AdamW in 8 bits": ["train.optimizer=adamw_8bit"],
    "teacher in int8": ["teacher.dtype=int8"],
    "compiled whole, teacher multiplies in int8": ["engine.compile=whole", "teacher.dtype=int8_dynamic"],
}


@dataclass(frozen=True)
class Case:
    """What is timed: a size of sizes.py, overrides of its experiment, and the number of timed rounds."""

    name: str
    words: list[str]
    rounds: int
    rehearsed: bool = False  # with a tiny teacher

    def plain(self, *words: str) -> "Case":
        """Returns the case with the settings of a plain step, and then `words`."""
        return replace(self, words=[*self.words, *PLAIN, *words])


def main() -> None:
    """Prints and saves the ratios of every size."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(default_sizes()), help=f"separated by commas: {', '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--switches", default="", help=f"all, or separated by semicolons: {'; '.join(SWITCHES)}")
    parser.add_argument("--agree", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked, words = parser.parse_known_args()
    wanted = list(SWITCHES) if asked.switches == "all" else [each.strip() for each in asked.switches.split(";") if each]
    if unknown := set(wanted) - set(SWITCHES):
        parser.error(f"--switches: expected some of {'; '.join(SWITCHES)}, got {'; '.join(sorted(unknown))}")
    print(f"memory rate of this device: {memory_rate(device()) / 1e9:.3g} GB/s")
    for name in asked.sizes.split(","):
        case = Case(name, words, asked.rounds, asked.rehearse)
        found: dict[str, Any] = {}
        try:
            found |= beside(case, asked.alone, asked.profile)
        except torch.OutOfMemoryError as error:
            found["failed"] = first_line(error)
            traceback.clear_frames(error.__traceback__)  # the frames hold the networks in memory
            print(f"{name}: {found['failed']}; try a smaller batch: train.global_batch=N")
        save(f"step-{name}", found, asked.out)
        if wanted:
            switches(case, wanted, lambda found, name=name: write(f"switches-{name}", found, asked.out))
        if asked.agree:
            save(f"agree-{name}", {"agree": agree(case, asked.agree)}, asked.out)


def beside(case: Case, alone: bool, profiled: bool) -> dict[str, Any]:
    """Returns the results of the three sides, or of ours alone. They are taken down in any case, also on an error."""
    with measured(case, alone or not SIZES[case.name].published_micro) as sides:
        found = compare(case, sides) | {"memory_gb": largest_memory()}
        if profiled:
            profile(sides)
        return found


class measured:
    """A context with the three sides of a size, or with ours alone."""

    def __init__(self, case: Case, alone: bool = False) -> None:
        self.folder = TemporaryDirectory()
        self.config: Config = configured(case.name, TEACHERS, case.words, case.rehearsed)
        self.size, self.rounds, self.alone = SIZES[case.name], case.rounds, alone

    def __enter__(self) -> Sides:
        steps = 5 * (self.rounds + WARM_UP) + 200
        gc.collect()  # frees the previous sides, which their caller held until now
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.sides = Sides(self.config, Path(self.folder.name), self.size.published_micro, steps, self.alone)
        return self.sides

    def __exit__(self, *raised: object) -> None:
        self.sides.close()
        del self.sides
        torch._dynamo.reset()
        self.folder.cleanup()


def compare(case: Case, sides: Sides) -> dict[str, Any]:
    """Returns the ratios (a)/(c) and (b)/(a) of the sides in sides.py, their speeds, and the parts of our step."""
    batch, rounds, rule = sides.batch, case.rounds, SIZES[case.name].rule
    floor_of = products(device())
    ablated = {f"without {part}": partial(sides.without, part) for part in PARTS} if sides.others else {}
    work = {"ours": sides.ours, **sides.others, **ablated, "text": sides.text, "products": floor_of.run}
    times = interleaved(work, rounds)
    without = {part: times.pop(f"without {part}") for part in PARTS if ablated}
    rates = [floor_of.flop / taken for taken in times.pop("products")]
    found: dict[str, Any] = {"matmul_tflops": interval(rates)[0] / 1e12}
    print(f"\n{case.name}: {rule}, {batch} samples per step, {sides.flop / 1e12:.3g} TFLOP per sample")
    pairs = [("ours", "bare")] * ("bare" in times)
    pairs += [(side, "ours") for side in times if side.startswith("published")] + [("text", "ours")]
    for over, under in pairs:
        label = f"{over} / {under}"
        middle, low, high = interval([a / b for a, b in zip(times[over], times[under], strict=True)])
        found[label] = {"median": middle, "low": low, "high": high, "rounds": rounds}
        print(f"  {label:32}{middle:8.3f}   ({low:.3f} to {high:.3f}, 95 % interval of {rounds} rounds)")
    times.pop("text")
    found["overhead"] = overhead(times, without)
    for side, taken in times.items():
        second = interval(taken)[0]
        speed = batch / second
        share = interval([batch * sides.flop / each / rate for each, rate in zip(taken, rates, strict=True)])[0]
        found[side] = {"seconds": second, "samples_per_s": speed, "share_of_matmul_rate": share}
        print(f"  {side:24}{1e3 * second:9.1f} ms{speed:10.1f} samples/s   {share:6.1%} of the {floor_of.rate}")
    print(f"  this rate, measured in every round: {found['matmul_tflops']:.3g} TFLOP/s")
    moved = moved_bytes(sides)
    found["elementwise_gb"] = moved / 1e9
    print(f"  a forward of teacher and student moves {moved / 1e9:.3g} GB outside of its products, op by op")
    parts = sides.parts(max(3, rounds // 3))
    whole = sum(parts.values())
    found["parts"] = {part: seconds / whole for part, seconds in parts.items()}
    print("  our step by part, waiting after each: " + ", ".join(f"{p} {s / whole:.1%}" for p, s in parts.items()))
    return found


def overhead(times: dict[str, list[float]], without: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Returns what each part adds to the time of a bare step: part -> median share and its interval. Prints it.

    A part's time is that of our step minus that of our step without it, round by round. What these parts leave over is
    the engine's.
    """
    found = {}
    for part, taken in without.items():
        whole = without["text"] if part == "data" else times["ours"]  # without data, the text is encoded, too
        shares = [(a - b) / bare for a, b, bare in zip(whole, taken, times["bare"], strict=True)]
        found[part] = dict(zip(("median", "low", "high"), interval(shares), strict=True))
        print("  {} adds {median:.1%} ({low:.1%} to {high:.1%}) to a bare step".format(part, **found[part]))
    return found


def interleaved(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each function in each round. The order rotates from round to round."""
    times: dict[str, list[float]] = {name: [] for name in work}
    order = list(work)
    for number in range(rounds + WARM_UP):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            wait()
            began = time.perf_counter()
            work[name]()
            wait()
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - began)
    return times


def switches(case: Case, wanted: list[str], keep: Callable[[dict[str, Any]], None]) -> None:
    """Measures the gain of each optimisation alone over the plain step, which is timed right before it.

    On a GPU, whose speed is steady, the plain step is timed once. The result includes the prediction of the cost model
    where there is one (tests/bench/predicted.py). `keep`: called with the results so far after each optimisation.
    """
    found: dict[str, Any] = {}
    print(f"\n{case.name}: each optimisation alone, against the plain step")
    plain, predicted = 0.0, {}
    for label in wanted:
        try:
            if not plain or not torch.cuda.is_available():
                plain, predicted = alone(case.plain(), lambda sides, took: floor(sides, took).gains())
            seconds, memory = alone(case.plain(*SWITCHES[label]), lambda *_: largest_memory())
        except Exception as error:  # this device or compiler can't do it: record it and go on
            found[label] = {"failed": first_line(error)}
            print(f"  {label:34}failed: {found[label]['failed']}", flush=True)
            keep({"switches": found})
            continue
        found[label] = {"median": plain / seconds, "predicted": predicted.get(label), "memory_gb": memory}
        said = f", predicted {predicted[label]:.3f}" if label in predicted else ""
        said += f", {memory:.1f} GB" if memory else ""
        print(f"  {label:34}{plain / seconds:6.3f} times as fast{said}", flush=True)
        keep({"switches": found})


def alone(case: Case, look: Callable[[Sides, float], T]) -> tuple[float, T]:
    """Returns the median seconds of our step alone, and what `look` returns before the sides are taken down."""
    with measured(case, alone=True) as sides:
        seconds = interval(interleaved({"ours": sides.ours}, case.rounds)["ours"])[0]
        return seconds, look(sides, seconds)


def largest_memory() -> float | None:
    """Returns the peak memory of the GPU so far in GB, or None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def floor(sides: Sides, seconds: float) -> Floor:
    """Returns the parts of a plain step that takes `seconds`, to predict the gains of switches."""
    outside = moved_bytes(sides, trained=3) / memory_rate(device())
    teacher, student = (denoiser_cost(Architecture.of(u)).flop for u in (sides.teacher.denoiser, sides.student))
    fp8 = sides.batch * fp8_flop(sides.teacher.denoiser) / matmul_rate(device())
    return Floor(seconds, outside, teacher, student, fp8)


def moved_bytes(sides: Sides, trained: int = 1) -> int:
    """Returns the bytes that a step's forward moves outside of products, op by op, the student's times `trained`."""
    low = sides.engine.dtype.itemsize
    each = elementwise_bytes(sides.teacher.denoiser, low) + trained * elementwise_bytes(sides.student, low)
    return sides.batch * each


def first_line(error: Exception) -> str:
    """Returns an error as one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def agree(case: Case, steps: int) -> dict[str, float]:
    """Returns how far losses with this size's settings are from those of the plain step.

    Rounding is measured too: the plain step runs again with the samples of every batch in the opposite order.
    """
    case = replace(case, rounds=steps)
    plain = curve(case.plain())
    rounding = apart(plain, curve(case.plain(), backwards=True))
    ours = curve(case)
    found = {"largest": apart(plain, ours), "by_rounding": rounding, "first": plain[0].item(), "last": plain[-1].item()}
    largest = found["largest"]
    print(f"{case.name}: over {steps} steps, losses differ by at most {largest:.2e}; by rounding alone {rounding:.2e}")
    print(f"  plain: from {plain[0]:.4f} to {plain[-1]:.4f}; with the settings: to {ours[-1]:.4f}")
    return found


def apart(plain: torch.Tensor, other: torch.Tensor) -> float:
    """Returns the largest relative difference of two curves [steps]."""
    return ((other - plain) / plain).abs().max().item()


def curve(case: Case, backwards: bool = False) -> torch.Tensor:
    """Returns the total losses [rounds] of our step. `backwards`: with the samples in the opposite order."""
    losses = []
    with measured(case, alone=True) as sides:
        for _ in range(case.rounds):
            drawn = next(sides.loader)
            if backwards:
                drawn = in_opposite_order(drawn)
            out = sides.distil(sides.engine.forward, drawn, sides.engine.dtype)
            sides.engine.backward(out.total)
            sides.engine.step(1e-5, 0.99)
            losses.append(out.total.detach())
        return torch.stack(losses).cpu()


def in_opposite_order(batch: Batch) -> Batch:
    """Returns a batch with its last sample first."""
    tensors = {key: value.flip(0) for key, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **tensors, token_ids={key: ids.flip(0) for key, ids in batch.token_ids.items()})


def profile(sides: Sides) -> None:
    """Prints the time of our step by op. A GPU's kernels count for their op."""
    cuda = torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=kinds) as found:
        for _ in range(3):
            sides.ours()
        wait()
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60))


if __name__ == "__main__":
    main()
