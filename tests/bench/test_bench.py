"""Runs the benches at a tiny size and checks that their results add up. No time is asserted."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json
from randcond.model_zoo.cost.flops import denoiser_cost
from randcond.model_zoo.cost.gpu_occupancy import Product, Work, occupancy
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.networks import denoiser_of
from randcond.model_zoo.teacher import Teacher
from randcond.train.tools.tune_command import Measured, doubling, proposed
from tests.bench.gpu import MEASUREMENTS, Measurement, dependencies, run_all
from tests.bench.predicted import Floor, fp8_flop
from tests.bench.results import RECORD, bf16_in_hardware, interval
from tests.support.patience import HANG

ROOT = Path(__file__).parents[2]


def bench(folder: Path, module: str, *words: str) -> str:
    """Runs a bench that saves its results in `folder`. Returns what it printed."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *words]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_steps_bench_and_its_memory_of_the_last(tmp_path: Path) -> None:
    # --agree builds one engine after the other.
    words = ["--sizes", "world", "--rounds", "2", "train.global_batch=4", "--agree", "2"]
    words += ["--switches", "channels last;checkpointing", "--profile"]
    first = bench(tmp_path, "step", *words, "engine.channels_last=true")
    recorded = json.loads((RECORD / "step-world.json").read_text())["environment"]["date"]
    assert "ours / bare" in first and f"last saved, {recorded}" in first
    assert re.search(r"^  published(, fp32)? / ours ", first, re.MULTILINE)  # fp32 alone on a CPU without bf16
    assert bf16_in_hardware() == ("published, 4 at once / ours" in first)
    kept = json.loads((tmp_path / "runs/bench/step-world.json").read_text())
    found = kept["found"]
    assert found["ours / bare"]["low"] <= found["ours / bare"]["median"] <= found["ours / bare"]["high"]
    assert sum(found["parts"].values()) == pytest.approx(1)
    assert list(found["overhead"]) == ["data", "text", "EMA", "watching"]
    assert first.count(" to a bare step") == 4
    assert found["ours"]["samples_per_s"] == pytest.approx(4 / found["ours"]["seconds"])
    gave = json.loads((tmp_path / "runs/bench/switches-world.json").read_text())["found"]["switches"]
    assert set(gave) == {"channels last", "checkpointing"} and all(each["median"] > 0 for each in gave.values())
    assert 0.5 < gave["checkpointing"]["predicted"] < 1 and gave["channels last"]["predicted"] is None
    assert kept["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
    agreed = json.loads((tmp_path / "runs/bench/agree-world.json").read_text())["found"]["agree"]
    assert 0 <= agreed["by_rounding"] < 1e-4 and 0 <= agreed["largest"] < 1e-4  # 0 if no bit changes in two steps
    assert f"last saved, {kept['environment']['date']}" in bench(tmp_path, "step", *words)


@pytest.mark.slow
def test_the_gpus_bench_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    words = ["--rehearse", "--out", str(out), "--only", "b-base,sd35-12,pixart-14,caching"]
    first = bench(tmp_path, "gpu", *words)
    lines = (out / "summary.md").read_text().splitlines()
    assert len(lines) == 4 and all(re.match(r"- [\w-]+ \(\d+ s\): ", line) for line in lines), lines
    assert "ours / bare" in lines[0] and "text / ours" in lines[1] and "stock / ours" in lines[3]
    write_json(out / "sd35-12" / "outcome.json", {"rc": 124, "seconds": 1.0})
    again = bench(tmp_path, "gpu", *words)
    assert again.count("measured before") == 3 and "12 layers" in again and first.splitlines()[-5] == lines[0]


def test_the_gpus_bench_tells_what_failed_and_what_is_left(tmp_path: Path) -> None:
    broken = Measurement("broken", "a command that fails", ["-m", "tests.bench.no_such_bench"], 1)
    hangs = Measurement("hangs", "a command that never ends", ["-c", "import time; time.sleep(600)"], 0.01)
    long = Measurement("long", "a long command", ["-m", "this"], 60)
    assert run_all([broken, hangs, long], tmp_path, sys.executable, False, time.monotonic() + 120) == 1
    said = (tmp_path / "summary.md").read_text().splitlines()
    assert said[0].startswith("- broken: failed after") and "No module named tests.bench.no_such_bench" in said[0]
    assert re.search(r"hangs: failed after \d s, took too long", said[1]) and said[2] == "- long: not measured"


def test_the_gpus_bench_needs_the_standard_library_alone() -> None:
    command = [sys.executable, "-S", "-m", "tests.bench.gpu", "--list"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in said.splitlines()] == [each.name for each in MEASUREMENTS]
    needed = dependencies("randcond")
    assert {"diffusers", "deepspeed", "webdataset"} <= needed and not needed & {"torch", "triton"}


@pytest.mark.slow
def test_the_drawing_bench(tmp_path: Path) -> None:
    said = bench(tmp_path, "draw", "--rounds", "2", "--largest", "2", "cache.steps=2", "cache.shard_size=50")
    assert "stock / ours" in said and "images/s" in said


@pytest.mark.slow
def test_the_evaluations_bench(tmp_path: Path) -> None:
    said = bench(tmp_path, "evaluation", "--images", "8", "--many", "64", "--rounds", "2")
    assert "by tenths" in said
    assert (tmp_path / "runs/bench/evaluation-memory-64.json").is_file()
    found = json.loads((tmp_path / "runs/bench/evaluation-8.json").read_text())["found"]
    assert found["scored / drawn alone"]["median"] > 0 and found["tool after tool / one pass"]["median"] > 0
    ours, theirs = found["tool after tool / one pass"]["clip"]
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
def test_the_startup_bench(tmp_path: Path) -> None:
    said = bench(tmp_path, "startup", "--rounds", "1")
    assert all(part in said for part in ("randcond --help", "forked", "deepspeed", "start of ranks", "first step"))


@pytest.mark.slow
def test_the_overlap_bench_measures_two_ranks(tmp_path: Path) -> None:
    words = ["teacher.dtype=bf16", "engine.precision=bf16"]  # like the larger size on a CPU with bf16
    said = bench(tmp_path, "overlap", "--steps", "2", "--size", "world", *words)
    assert all(name in said for name in ("zero-1", "zero-3", "fsdp-full")) and "global batch 2048" in said


@pytest.mark.parametrize(("target", "first", "parts"), [("bench", "step", 3), ("bench-data", "pool", 2)])
def test_who_asks_a_bench_for_help_gets_no_timing(target: str, first: str, parts: int) -> None:
    def lines(words: str) -> list[str]:
        command = ["make", "-n", target, f"ARGS={words}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "tests.bench" in line]

    assert [line.split()[-1] for line in lines("--help")] == ["--help"] * parts
    begins, *others = lines("--rounds 9")
    assert begins.endswith(f"tests.bench.{first} --rounds 9")
    assert not any("--rounds" in line or "--help" in line for line in others)


def test_what_switches_should_give_by_hand() -> None:
    """A step of 10 s, 3 s outside of products. The teacher is twice the student; 1 s of its products can run in fp8."""
    gains = Floor(plain=10, elementwise=3, teacher=2, student=1, fp8=1).gains()
    assert gains["compiled whole"] == pytest.approx(10 / 8)
    assert gains["compiled whole, teacher in fp8"] == pytest.approx(10 / 7.5)
    assert gains["checkpointing"] == pytest.approx(10 / 12)  # the student's forward again: a fifth of the step
    unet = Teacher.load(ROOT / "data/digits/models/teacher", "fp32").denoiser
    whole = denoiser_cost(Architecture.of(unet)).flop
    assert 0.1 * whole < fp8_flop(unet) < 0.5 * whole


def test_an_interval_holds_its_median() -> None:
    values = list(np.random.default_rng(0).normal(1.05, 0.02, 40))
    middle, low, high = interval(values)
    assert low < middle < high and high - low < 0.03 and middle == float(np.median(values))


def test_sizes_double_until_speed_or_memory_ends() -> None:
    tried: list[int] = []

    def run(batch: int) -> int:
        tried.append(batch)
        if batch == 8:
            raise torch.OutOfMemoryError("none left")
        return batch

    assert [size.batch for size in doubling(run, 512)] == [1, 2, 4] and tried[-1] == 8
    sizes = [Measured(batch, speed, 1.0) for batch, speed in ((1, 10.0), (2, 19.0), (4, 29.3), (8, 30.0))]
    assert proposed(sizes) == 4  # within 3 % of the best
    with pytest.raises(UserError, match="out of memory: a batch of 1"):
        next(doubling(lambda batch: run(8), 512))


def test_products_fill_a_gpu_by_hand() -> None:
    """132 tiles keep 132 cores busy. With one tile more, some cores are idle. A long sum is split."""
    tile = Product(128, 128, 256)
    full = Product(128 * 132, 128, 256)
    assert occupancy(None, Work((full,), 1), 1, 132) < 1  # the gradient of its weights has few tiles
    forward = Work((full,), 1)
    nothing = Work((), 0)
    assert occupancy(forward, nothing, 1, 132) == 1
    # Large tiles take two rounds. Small tiles take five, each 3/8 of a large one's time.
    assert occupancy(Work((Product(128 * 133, 128, 256),), 1), nothing, 1, 132) == pytest.approx(
        133 / 132 / (5 * 3 / 8)
    )
    assert occupancy(Work((tile,), 1), nothing, 132, 132) == 1  # the batch multiplies the rows
    long = Product(128, 128, 512 * 66)
    assert occupancy(Work((long,), 1), nothing, 1, 132) == pytest.approx(
        2 / 3
    )  # four small tiles, each sum split among 33 cores


def test_what_fills_is_what_costs() -> None:
    """The products of a U-Net add up to all of its MACs."""
    from randcond.model_zoo.cost.gpu_occupancy import forward_work

    denoiser = denoiser_of("sd-v1-4")
    found, cost = forward_work(denoiser), denoiser_cost(denoiser)
    macs = sum(p.rows * p.columns * p.depth * p.groups for p in found.products)
    assert macs == cost.macs + cost.attention_macs
    assert len([p for p in found.products if p.attends]) == 2 * 32
