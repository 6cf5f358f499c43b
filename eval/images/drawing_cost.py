"""What a user pays for an image: seconds and peak memory, with one image at once and with the evaluation's batch.

In: a pipeline and a task. Out: OUT/cost.json. The whole path is timed: encoding the caption, sampling, decoding.
Memory is that of tensors: the weights on the device, and the largest sum of all others at one time.
"""

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from randcond.eval.images.generate import Task
from randcond.launch.runtime.files import read_record, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import cpu_threads, device, device_name
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents, to_bytes

FILE = "cost.json"
REPEATS, REPEATING = 3, 20.0  # runs of which the median counts; seconds after which no further one starts
LONGEST = 120.0  # seconds: a run that would take longer is extrapolated from FEW and TWICE_AS_MANY steps
FEW, TWICE_AS_MANY = 2, 4
STEADY = 1.2  # the slowest run over the fastest one, at most


def cost_facts(task: Task, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that the cost depends on. facts: network, dtype and compilation."""
    protocol = task.protocol
    return {
        **facts,
        **task.text_facts,
        "sampler": protocol.sampler,
        "steps": protocol.steps,
        "guidance": protocol.guidance,
        "resolution": task.ev.resolution,
        "batch": task.batch,
        "versions": {name: version(name) for name in ("torch", "diffusers")},
        "device": device_name(),
        "threads": cpu_threads(),
    }


def is_measured(out: Path, facts: dict[str, Any]) -> bool:
    """Returns True if OUT/cost.json holds the cost with these facts, from cost_facts()."""
    known = read_record(out / FILE) if (out / FILE).is_file() else {}
    return {key: known.get(key) for key in facts} == facts


def measure_cost(pipe: DiffusionPipeline, task: Task, facts: dict[str, Any], out: Path, name: str) -> None:
    """Measures a pipeline and writes OUT/cost.json.

    task: with steps and guidance that are set. facts: of cost_facts(). name: for the log.
    """
    batches = {str(batch): _measure(pipe, task, batch) for batch in dict.fromkeys((1, task.batch))}
    write_json(out / FILE, {**facts, "batches": batches})
    said = "; ".join(
        f"{found['seconds']:.3g} s and {found['gb']:.3g} GB at batch {batch}" for batch, found in batches.items()
    )
    log.info(f"eval: {name}: an image takes {said} ({facts['device']})")


def _measure(pipe: DiffusionPipeline, task: Task, batch: int) -> dict[str, Any]:
    """Returns seconds and GB of a compute batch; seconds are per image."""
    steps = task.protocol.steps
    assert steps is not None  # the task has the pipeline's default
    bytes_drawing, _ = _peak(lambda: _draw(pipe, task, batch, min(steps, FEW)))  # also warms up
    first = _seconds(lambda: _draw(pipe, task, batch, min(steps, FEW)))
    found = {"gb": (_weights(pipe) + bytes_drawing) / 1e9}
    if first * steps / FEW > LONGEST and steps > TWICE_AS_MANY:
        few, more = (_seconds(lambda count=count: _draw(pipe, task, batch, count)) for count in (FEW, TWICE_AS_MANY))  # type: ignore[misc]
        whole = more + (steps - TWICE_AS_MANY) * (more - few) / (TWICE_AS_MANY - FEW)
        return {**found, "seconds": whole / batch, "extrapolated": True}
    runs: list[float] = []
    while len(runs) < REPEATS and sum(runs) < REPEATING:
        runs.append(_seconds(lambda: _draw(pipe, task, batch, steps)))
    steady = len(runs) > 1 and max(runs) <= STEADY * min(runs)
    return {**found, "seconds": median(runs) / batch, "extrapolated": False, "steady": steady}


def _draw(pipe: DiffusionPipeline, task: Task, batch: int, steps: int) -> None:
    captions = [task.prompts.captions[number % len(task.prompts.captions)] for number in range(batch)]
    seeds = [caption_seed(task.ev.seed, number) for number in range(batch)]
    tokens = task.text_facts.get("text_tokens")
    latents = draw_latents(pipe, captions, seeds, steps, task.protocol.guidance, batch, task.ev.resolution, tokens)
    to_bytes(decode(pipe, latents)).cpu()  # waits for the device


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _peak(work: Callable[[], None]) -> tuple[int, float]:
    """Runs some work. Returns the largest sum of bytes that it had allocated at one time, and its seconds."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats(device())
        before = torch.cuda.memory_allocated(device())
        seconds = _seconds(work)
        return torch.cuda.max_memory_allocated(device()) - before, seconds
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        seconds = _seconds(work)
    assert profiler.profiler is not None
    total = largest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            total += event.nbytes()
            largest = max(largest, total)
    return largest, seconds


def _weights(pipe: Any) -> int:
    """Returns the bytes of a pipeline's weights on this process's device."""
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    tensors = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.device.type == device().type)
