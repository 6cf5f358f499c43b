"""Runs full-size training steps on random weights; reports memory, time and attention backends.

`python -m tests.bench.full_size TEACHER RULE [section.key=value ...]`: TEACHER is a folder made by
`python -m tests.support.shaped LAYOUT FOLDER`, RULE is a student rule. Teacher, student, taps, projectors, engine and
losses are those of the trainer. Only the latents are noise. Each phase prints one JSON line, so if the process is
killed, the output shows in which phase. On a GPU, all attention backends run on the same batch.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.kernels.attention import Use, choose_attention, set_attention, summary
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step
from randcond.train.engine import build_engine
from randcond.train.tools.tune_command import noise_batch

TIMED_STEPS = 5
SPARE = 1.5e9  # bytes left to the rest of the machine


def main() -> None:
    """Runs the phases. If memory runs out, prints this and exits with 0."""
    folder, rule, *overrides = sys.argv[1:]
    cuda = torch.cuda.is_available()
    fixed = [f"teacher.path={folder}", "teacher.dtype=bf16", f"student.rule={rule}", "engine.processes=1"]
    config = load_config("demo-with", [*fixed, "engine.precision=bf16", "train.global_batch=1", *overrides])
    if not cuda:
        print(json.dumps({"available_gb": round(psutil.virtual_memory().available / 1e9, 1)}), flush=True)
        threading.Thread(target=watch_memory, daemon=True).start()
    try:
        steps(config, cuda)
    except torch.OutOfMemoryError as error:
        print(json.dumps({"stopped": "out of memory", "error": str(error).splitlines()[0][:200]}), flush=True)


def watch_memory() -> None:
    """Ends the process with a message before it uses up the machine's memory."""
    while (left := psutil.virtual_memory().available) > SPARE:
        time.sleep(0.02)
    print(json.dumps({"stopped": "out of memory", "left_gb": round(left / 1e9, 2)}), flush=True)
    os._exit(0)


def steps(config: Config, cuda: bool) -> None:
    """Runs the phases of the first step. On a GPU, runs more steps, then each attention backend on the same batch."""
    with phase("teacher"):
        teacher = Teacher.load(config.teacher.path, config.teacher.dtype, device())  # type: ignore[arg-type]
        if config.cache.resolution:
            teacher.latent_side = config.cache.resolution // teacher.pixels_per_latent
    with phase("student"):
        module, distil = build_step(config, teacher)
    with phase("engine"):
        engine = build_engine(config, module)
    with phase("attention") as said:
        attend(config, teacher, module.network, config.engine.attention, said)
    batch = noise_batch(teacher, config.train.global_batch)
    with phase("forward") as said:
        losses = distil(engine.forward, batch, engine.dtype)
        said["loss"] = losses.total.item()
    with phase("backward"):
        engine.backward(losses.total)
    with phase("optimizer") as said:
        said["grad_norm"] = float(engine.step(0.0, 0.9))  # lr 0: every backend below sees the same weights

    def step() -> None:
        out = distil(engine.forward, batch, engine.dtype)
        engine.backward(out.total)
        engine.step(0.0, 0.9)

    if not cuda:
        with phase("a whole step"):
            step()
        return
    with phase(f"{TIMED_STEPS} steps") as said:
        said["samples_per_s"] = speed(step, config.train.global_batch)
    for name, backend in {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }.items():
        compare(f"sdpa, {name}", step, config, teacher, module, distil, engine, batch, sdpa_kernel(backend))
    compare("xformers", step, config, teacher, module, distil, engine, batch, contextlib.nullcontext(), "xformers")


def compare(
    name: str, step: Any, config: Config, teacher: Any, module: Any, distil: Any, engine: Any, batch: Any, context: Any,
    wanted: str = "sdpa",
) -> None:  # fmt: skip
    """Prints the loss at the same weights, and the speed, with one attention backend."""
    try:
        with phase(name) as said, context:
            attend(config, teacher, module.network, wanted, said)
            with torch.no_grad():
                said["loss"] = distil(engine.forward, batch, engine.dtype).total.item()
            said["samples_per_s"] = speed(step, config.train.global_batch)
    except RuntimeError as error:  # the backend has no kernel for these shapes, or memory is short
        print(json.dumps({"phase": name, "failed": str(error).strip().splitlines()[0][:300]}), flush=True)
        torch.cuda.empty_cache()


def attend(config: Config, teacher: Teacher, unet: Any, wanted: str, said: dict[str, Any]) -> None:
    """Sets the attention of both networks as the trainer does."""
    for what, network in (("teacher", teacher.denoiser), ("student", unet)):
        use = Use(torch.bfloat16, device(), config.train.global_batch, what == "student")
        choices = choose_attention(network, wanted, use)
        set_attention(network, choices)
        said[what] = summary(choices)


def speed(step: Any, batch: int) -> float:
    """Returns samples per second over TIMED_STEPS steps, after two warm-up steps."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step()
    torch.cuda.synchronize()
    return round(TIMED_STEPS * batch / (time.perf_counter() - began), 2)


@contextlib.contextmanager
def phase(name: str) -> Iterator[dict[str, Any]]:
    """Prints the phase's seconds and peak memory when it ends."""
    said: dict[str, Any] = {"phase": name}
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's peak counter
    began = time.perf_counter()
    yield said
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        said["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    else:
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        said["peak_gb"] = round(int(peak.split()[1]) * 1024 / 1e9, 2)
    print(json.dumps({**said, "seconds": round(time.perf_counter() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
