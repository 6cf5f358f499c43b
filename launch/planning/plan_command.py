"""`randcond plan`: predicts what an experiment needs on a cluster before it runs."""

import json as json_library
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from randcond.launch.config.experiments import find_table, load_config, table_names
from randcond.launch.config.gpus import find_gpu
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import runs_of
from randcond.launch.errors import UserError
from randcond.launch.runtime.json_lines import whole_lines
from randcond.launch.runtime.progress import Progress

if TYPE_CHECKING:
    from randcond.launch.planning import costs, planner

TOGETHER = "all, what they share once"  # the last row: scripts read it from the JSON output
ASSUMED_EFFICIENCY = 0.25  # published trainings of this kind reach 9 % to 31 %


def plan(
    experiment: str = "",
    *overrides: str,
    gpu: str = "h200",
    nodes: int = 1,
    gpus: int = 8,
    efficiency: str = "",
    sweep: bool = False,
    curve: bool = False,
    cards: bool = False,
    json: bool = False,
) -> None:
    """Predicts memory per GPU by part, and time and GPU-hours of caching, training and evaluation. Runs nothing.

    experiment   a name, a YAML file, or a table (all its rows); without one: all tables of the paper together
    overrides    any key of the YAML; teacher.path also takes the names of `randcond students --help` (sd-v1-4, ...),
                 which need no download

    --gpu NAME       a100-40, a100-80, h100, h100-pcie, h100-nvl, h200 (default), h200-nvl, b200, gb200, l40s, l4, a10,
                     a30, a6000, rtx6000-ada, rtx5090, rtx4090, rtx4080, rtx4070, rtx4060, rtx3090, rtx3080, rtx3060;
                     or any other by its memory and dense bf16 speed: 11GB,27TFLOPS
    --nodes N        number of hosts (default 1)
    --gpus N         GPUs per host (default 8)
    --efficiency E   share of the GPU's dense bf16 peak that a full GPU (64 samples at once) reaches; the time that a
                     smaller micro-batch leaves cores idle is added. Either a number (default: 0.25, assumed;
                     published trainings reach 0.09 to 0.31), or the folder of a run, whose measured MFU is used;
                     that includes the run's data stalls
    --sweep          compare engines, micro-batches and hosts up to 1,024 GPUs: memory, speed, traffic, arithmetic
    --curve          the fastest engine and micro-batch on 1 to 1,024 GPUs at the experiment's global batch, and the
                     number of GPUs from which each GPU has too few samples
    --cards          what single GPUs of 8 to 141 GB can train: settings that make it fit, micro-batch, samples/s
    --json           print JSON

    If a training does not fit, the plan says which changes make it fit. The memory is the sum of all parts. It is an
    upper bound, because gradients grow while activations are freed. Not included:
    - the arithmetic of CLIP text encoders (about 1 %); T5 and Qwen3 are counted
    - the memory of an evaluation during training (train.eval_every): a copy of the student's denoiser, scoring networks

    examples     randcond plan                  GPU-hours and disk space of every table, and of all together
                 randcond plan table1 --nodes 8
                 randcond plan table1-row5 --gpu h200 --nodes 8
                 randcond plan koala-700m --sweep
                 randcond plan b-base train.global_batch=2048 --curve
    """
    found = find_gpu(gpu)
    for flag, value in (("--nodes", nodes), ("--gpus", gpus)):
        if value < 1:
            raise UserError(f"{flag}: must be at least 1, got {value}")
    share, source = _efficiency(efficiency)
    if not experiment:
        from randcond.launch.planning import costs

        _print_all(costs.Cluster(found, nodes, gpus), gpu, share, source, json)
        return
    runs = runs_of(experiment, list(overrides))
    repetition = [run for run in runs if run.overrides == runs[0].overrides]  # all repetitions need the same
    configs = [run.config for run in repetition if run.config.trains]
    if not configs:
        raise UserError(f"{experiment}: trains no student; a plan is for trainings with their caches and evaluations")

    from randcond.launch.planning import cards as card_tables
    from randcond.launch.planning import costs, planner, pricing

    results: list[Any] = []
    cluster = costs.Cluster(found, nodes, gpus)
    for config in configs:
        sizes = costs.counted(config)
        if cards:
            fitting = card_tables.card_plans(config, sizes, share)
            results += fitting
            text = card_tables.cards_table(config, fitting, share, source)
        elif curve:
            rows = planner.curve(config, sizes, found, gpus, share)
            results += rows
            text = curve_table(config, rows, gpu, source)
        elif sweep:
            rows = planner.sweep(config, sizes, found, gpus, share)
            results += rows
            text = sweep_table(config, rows, gpu, source)
        else:
            results.append(planner.plan(config, sizes, cluster, share))
            text = page(config, results[-1], gpu, source)
        if not json:
            print(text)
    if json:
        print(json_library.dumps([asdict(row) for row in results], indent=1))
    elif experiment in table_names() and not (curve or sweep or cards):
        prices = pricing.Prices(cluster, share)
        priced = [(run.experiment, prices.of(run.config)[0]) for run in runs]
        unknown = {name for name, artefacts in priced if not artefacts}
        if len(unknown) < len(priced):
            hours, gb = pricing.together(each for _, artefacts in priced for each in artefacts)
            print(f"{experiment}, shared work counted once: {hours:,.0f} GPU-hours, {gb:,.0f} GB on disk")
            if unknown:
                print(f"not included, because the costs of their networks are unknown: {', '.join(sorted(unknown))}")


def _print_all(cluster: "costs.Cluster", gpu: str, share: float, source: str, json: bool) -> None:
    """Prints GPU-hours and disk space of each table of the paper, and of all together."""
    from randcond.launch.planning import pricing

    prices = pricing.Prices(cluster, share)
    rows: list[dict[str, Any]] = []
    everything, unknown, too_large = [], set(), set()
    for name in Progress(
        [name for name in table_names() if find_table(name).parent.name == "paper"], desc="pricing", unit="table"
    ):
        runs = runs_of(name, [])
        of_table = []
        for run in runs:
            artefacts, fits = prices.of(run.config)
            of_table += artefacts
            unknown |= set() if artefacts else {run.experiment}
            too_large |= set() if fits else {run.experiment}
        hours, gb = pricing.together(of_table)
        rows.append({"table": name, "runs": len(runs), "gpu_hours": hours, "gb": gb})
        everything += of_table
    hours, gb = pricing.together(everything)
    trained = len({each.folder for each in everything if each.kind == "run"})
    rows.append({"table": TOGETHER, "runs": trained, "gpu_hours": hours, "gb": gb})
    if json:
        print(json_library.dumps(rows, indent=1))
        return
    print(f"{cluster.nodes} x {cluster.per_node} {gpu} at {share:.0%} of the peak ({source})\n")
    print(f"{'':28}{'runs':>8}{'GPU-hours':>12}{'days':>12}{'disk, GB':>12}")
    for row in filter(lambda row: row["runs"], rows):
        days = row["gpu_hours"] / (24 * cluster.ranks)
        print(f"{row['table']:28}{row['runs']:8}{row['gpu_hours']:12,.0f}{days:12.1f}{row['gb']:12,.0f}")
    if unknown:
        print(f"\nnot included, because the costs of their networks are unknown: {', '.join(sorted(unknown))}")
    if too_large:
        print(f"\nDOES NOT FIT (`randcond plan NAME` says what makes it fit): {', '.join(sorted(too_large))}")


def _efficiency(text: str) -> tuple[float, str]:
    """Returns the share of the peak that --efficiency gives, and its origin in words. Raises UserError."""
    if not text:
        return ASSUMED_EFFICIENCY, "assumed; set it with --efficiency"
    if Path(text).is_dir():
        return _reached(Path(text)), f"measured in {text}"
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"--efficiency: expected a number between 0 and 1, or a run's folder; got {text!r}") from None
    if not 0 < value <= 1:
        raise UserError(f"--efficiency: must be above 0 and at most 1, got {text}")
    return value, "given"


def _reached(run: Path) -> float:
    """Returns a run's median MFU, plus what MFU leaves out: the text, and what activation checkpointing repeats."""
    from randcond.launch.planning import costs, step_time

    config = load_config(str(run / "config.yaml"))
    sizes = costs.counted(config)
    passes = step_time.student_passes(config)
    done = sizes.text_flop(config.teacher) + sizes.teacher.flop + passes * sizes.student.flop
    return _median_mfu(run) * done / (sizes.teacher.flop + 3 * sizes.student.flop)


def _median_mfu(run: Path) -> float:
    """Returns the median MFU of a run's metrics.jsonl. Raises UserError if it has none."""
    shares = [line.get("mfu") or 0.0 for _, line in whole_lines(run / "metrics.jsonl")]
    values = [share for share in shares if share > 0 and isfinite(share)]
    if not values:
        raise UserError(
            f"--efficiency: {run}/metrics.jsonl has no mfu, which only runs on known GPUs have; give a number"
        )
    return median(values)


def page(config: Config, found: "planner.Plan", gpu: str, source: str) -> str:
    """Returns the plan of one experiment as text."""
    gpu_gb = found.gpu.memory_gb
    lines = [
        f"{found.experiment}: {config.student.rule} of {config.teacher.path}",
        f"on {found.nodes} x {found.gpus // found.nodes} {gpu}, {found.engine}, {config.engine.precision}: "
        f"global batch {found.global_batch} = {found.gpus} GPUs x {found.micro_batch} samples x "
        f"{found.accumulation} micro-batches",
        "",
        f"memory per GPU, GB (of {gpu_gb:g}, {found.usable:.0%} usable)",
        *(f"  {part:32}{size:8.2f}" for part, size in found.memory_gb.items()),
        f"  {'sum':32}{found.needed_gb:8.2f}  {'fits' if found.fits else 'DOES NOT FIT'}",
    ]
    if not found.fits:
        lines += [f"  fits with  {words}  ({gb:.1f} GB)" for words, gb in found.knobs] or [
            "  no setting makes it fit; use a GPU with more memory, more hosts, or a smaller student or teacher"
        ]
    text = f" ({found.text_share:.0%} of it for the text)" if found.text_share else ""
    lines += [
        "",
        f"time of a step at {found.efficiency:.0%} of the peak ({source}): {_time(found.step_seconds)}",
        f"  arithmetic {_time(found.arithmetic_seconds)}{text}; idle cores {_time(found.idle_seconds)} "
        f"({found.micro_batch} samples at once keep {found.filled:.0%} as many cores busy as "
        f"{found.full_at} do)",
        f"  traffic {_time(found.traffic_seconds)} "
        f"({found.traffic_gb:.2f} GB sent per GPU); {found.samples_per_second:.0f} samples/s",
        "",
        f"  {'':8}{'samples':>14}{'time':>12}{'GPU-hours':>12}",
        *(
            f"  {stage:8}{row.samples:14,}{_time(3600 * row.hours):>12}{row.gpu_hours:12.1f}"
            for stage, row in found.stages.items()
        ),
    ]
    if config.engine.precision == "fp32" or config.teacher.dtype == "fp32":
        lines += [
            "",
            "This experiment computes in fp32, which reaches a fraction of the bf16 peak. Lower --efficiency.",
        ]
    return "\n".join([*lines, ""])


def sweep_table(config: Config, rows: "list[planner.Plan]", gpu: str, source: str) -> str:
    """Returns the sweep as text: a line per number of GPUs, engine and micro-batch."""
    head = f"{'GPUs':>5}  {'engine':12}{'micro':>6}{'accum.':>7}{'GB':>8}  {'fits':5}{'filled':>7}{'arithmetic':>11}"
    head += f"{'traffic':>9}{'sent GB':>9}{'samples/s':>11}{'train GPU-h':>13}"
    lines = [
        f"{rows[0].experiment}: {config.student.rule} of {config.teacher.path}, {config.engine.precision}, "
        f"global batch {config.train.global_batch}, {gpu} at {rows[0].efficiency:.0%} of its peak ({source})",
        head,
    ]
    for row in rows:
        line = f"{row.gpus:5}  {row.engine:12}{row.micro_batch:6}{row.accumulation:7}{row.needed_gb:8.1f}  "
        line += f"{'yes' if row.fits else 'no':5}{row.filled:7.0%}{_time(row.arithmetic_seconds):>11}"
        line += f"{_time(row.traffic_seconds):>9}{row.traffic_gb:9.2f}{row.samples_per_second:11.0f}"
        lines.append(line + f"{row.stages['train'].gpu_hours:13.1f}")
    from randcond.launch.planning.planner import SWEEP_GPUS

    tried = max(row.gpus for row in rows)
    if 2 * tried <= SWEEP_GPUS:
        lines.append(
            f"more than {tried} GPUs: the global batch of {config.train.global_batch} does not divide over them"
        )
    return "\n".join([*lines, ""])


POOR_SCALING = 0.8  # below this share of a single GPU's speed, more GPUs are not worth it


def curve_table(config: Config, rows: "list[planner.Plan]", gpu: str, source: str) -> str:
    """Returns the curve as text: a line per number of GPUs."""
    lines = [
        f"{rows[0].experiment}: {config.student.rule} of {config.teacher.path}, {config.engine.precision}, "
        f"global batch {config.train.global_batch}, {gpu} at {rows[0].efficiency:.0%} of its peak ({source})",
        f"{'GPUs':>5}  {'engine':12}{'micro':>6}{'filled':>8}{'step':>10}{'samples/s':>11}{'per GPU':>9}{'of one':>8}",
    ]
    alone = rows[0].samples_per_second / rows[0].gpus
    first_poor = None
    for row in rows:
        each = row.samples_per_second / row.gpus
        first_poor = first_poor or (row if each < POOR_SCALING * alone else None)
        line = f"{row.gpus:5}  {row.engine:12}{row.micro_batch:6}{row.filled:8.0%}"
        line += f"{_time(row.step_seconds):>10}{row.samples_per_second:11.0f}{each:9.1f}{each / alone:8.0%}"
        lines.append(line)
    if first_poor:
        lines.append(
            f"From {first_poor.gpus} GPUs on (micro-batch {first_poor.micro_batch}), a GPU does less than "
            f"{POOR_SCALING:.0%} of the samples/s that it does with {rows[0].gpus} in use. "
            "Use fewer GPUs or a larger batch."
        )
    return "\n".join([*lines, ""])


def _time(seconds: float) -> str:
    """Returns a time with its unit, from ms to h."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
