"""Measures how much of its traffic each engine hides on two ranks (`make bench-scaling`).

For each engine, three things are timed in interleaved rounds on two ranks: our step; the same arithmetic without an
engine; as much traffic as the engine's, alone. Traffic that does not make the step longer is hidden. On CPUs,
arithmetic and gloo's traffic share the cores; NCCL's copy engines hide more. Then the planner's curves are printed.
`--steps N`: the timed rounds. `--size NAME`: a size of tests/bench/sizes.py. All other words override keys of the
experiment.
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ENGINES = {
    "zero-1": ["engine.zero_stage=1"],
    "zero-2": ["engine.zero_stage=2"],
    "zero-3": ["engine.zero_stage=3"],
    "fsdp-full": ["engine.kind=fsdp"],
    "fsdp-grad_op": ["engine.kind=fsdp", "engine.sharding=grad_op"],
}
RESULT = "RANDCOND_BENCH_RESULT"
CURVES = (256, 2048)  # global batches


def main() -> None:
    """Starts two ranks per engine, then prints the curves. In one of these ranks, measures."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--size", default="mid")
    asked, words = parser.parse_known_args()
    if "RANK" in os.environ:
        rank(asked.size, asked.steps, words)
        return
    from tests.bench.results import save
    from tests.bench.sizes import TEACHERS, configured

    configured(asked.size, TEACHERS, words)  # makes the teacher before the ranks load it
    found: dict[str, Any] = {}
    print(f"{'engine':14}{'step ms':>9}{'arithmetic':>12}{'traffic':>9}{'sent MB':>9}{'hidden':>8}")
    for name, overrides in ENGINES.items():
        with TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            command = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2"]
            command += ["-m", "tests.bench.overlap", "--size", asked.size, "--steps", str(asked.steps)]
            environment = {**os.environ, RESULT: str(result), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            environment["CUDA_VISIBLE_DEVICES"] = ""  # two ranks would need two GPUs, so they always use CPUs
            done = subprocess.run([*command, *overrides, *words], env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr[-3000:]}")
            found[name] = json.loads(result.read_text())
        row = found[name]
        line = f"{name:14}{row['step_ms']:9.1f}{row['arithmetic_ms']:12.1f}{row['traffic_ms']:9.1f}"
        print(f"{line}{row['sent_mb']:9.1f}{row['hidden']:8.0%}", flush=True)
    for batch in CURVES:
        words = ["teacher.path=sd-v1-4", "teacher.dtype=bf16", "engine.precision=bf16", "engine.threads=null"]
        curve = ["plan", "demo-with", *words, f"train.global_batch={batch}", "--curve", "--efficiency", "0.31"]
        subprocess.run([sys.executable, "-m", "randcond.launch.cli", *curve], check=True)
    save("scaling", found)


def rank(size: str, steps: int, words: list[str]) -> None:
    """Measures as one of two ranks. Rank 0 writes the result."""
    import torch
    import torch.distributed as dist

    from randcond.launch.config.gpus import GPUS
    from randcond.launch.config.paths import resolve_path
    from randcond.launch.planning.costs import Cluster, counted
    from randcond.launch.planning.step_time import step_traffic
    from randcond.launch.runtime.files import write_json
    from randcond.launch.runtime.ranks import device
    from randcond.model_zoo.teacher import Teacher
    from randcond.train.build import build_step
    from randcond.train.engine import build_engine
    from randcond.train.tools.tune_command import noise_batch
    from tests.bench.sizes import TEACHERS, configured

    batch = 8  # of both ranks: with little arithmetic, the traffic takes a larger part of the step
    config = configured(size, TEACHERS, [*words, "engine.threads=1", f"train.global_batch={batch}"])
    torch.set_num_threads(1)
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    module, distil = build_step(config, teacher)
    alone, other = build_step(config, teacher)
    other.taps.remove()
    engine = build_engine(config, module)
    alone.to(engine.dtype)  # in bf16 its optimizer updates bf16 weights: there are no master weights
    mine = noise_batch(teacher, batch // 2, seed=engine.rank)
    traffic = step_traffic(config, counted(config), Cluster(GPUS["h200"], 1, 2)).sent
    share, half = [], sum(p.numel() for p in alone.parameters()) / 2  # each rank does half of the optimizer's work
    for parameter in alone.parameters():
        if sum(p.numel() for p in share) < half:
            share.append(parameter)
    optimizer = torch.optim.AdamW(share, lr=1e-5, fused=True)
    # All-gathers send as many bytes as the engine, in pieces of a block's size.
    piece = torch.zeros(1 << 20)
    pieces = max(1, round(traffic / piece.nbytes))
    into = torch.zeros(2 << 20)

    def step() -> None:
        losses = distil(engine.forward, mine, engine.dtype)
        engine.backward(losses.total)
        engine.step(1e-5, 0.99)

    def arithmetic() -> None:
        losses = distil(alone, mine, engine.dtype)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(share, 1.0)
        optimizer.step()
        alone.zero_grad()

    def sending() -> None:
        for _ in range(pieces):
            dist.all_gather_into_tensor(into, piece)

    times: dict[str, list[float]] = {"step": [], "arithmetic": [], "traffic": []}
    for number in range(steps + 2):
        for name, work in (("step", step), ("arithmetic", arithmetic), ("traffic", sending)):
            dist.barrier()
            began = time.perf_counter()
            work()
            dist.barrier()
            if number >= 2:
                times[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    longer = medians["step"] - medians["arithmetic"]
    if engine.rank == 0:
        milliseconds = {f"{name}_ms": 1e3 * seconds for name, seconds in medians.items()}
        hidden = 1 - longer / medians["traffic"]
        write_json(Path(os.environ[RESULT]), {**milliseconds, "sent_mb": traffic / 1e6, "hidden": hidden})
    engine.close()


if __name__ == "__main__":
    main()
