"""`randcond plan`: what an experiment will take on a cluster, before it is run."""

import json as json_library
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
    from randcond.launch.planning import costs

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
    json: bool = False,
) -> None:
    """Predicts memory per GPU by part, and time and GPU-hours of caching, training and evaluation; runs nothing.

    experiment   a name or a YAML file, or a table (each of its rows); none: all tables of the paper, together
    overrides    any key of the YAML; teacher.path takes sd-v1-4, sd-v2-1 and sdxl too, no download is needed

    --gpu NAME       a100-40, a100-80, h100, h100-pcie, h100-nvl, h200 (default), h200-nvl, b200, gb200, l40s, rtx4090
    --nodes N        hosts (default 1)
    --gpus N         GPUs of each (default 8)
    --efficiency E   the share of the GPU's dense bf16 peak that is reached: a number (0.3), or a run's folder, whose
                     measured MFU it then is, that run's own waiting included (default: 0.25, assumed;
                     published trainings reach 0.09 to 0.31); of a full GPU, with 64 samples at once: what fewer
                     leave idle is added
    --sweep          engines, micro-batches and hosts up to 1,024 GPUs: memory, speed, traffic against arithmetic
    --curve          the fastest engine and micro-batch on 1 to 1,024 GPUs at the experiment's global batch, and from
                     where on a GPU has too few samples to be filled
    --json           the same as data

    Where it does not fit, it says which change makes it fit. Memory is the sum of all parts, an upper bound: gradients
    grow while activations go. Left out: the text encoders' arithmetic (about 1 %), what an evaluation while training
    (train.eval_every) holds beside (a copy of the student's U-Net and the networks that score), and what
    engine.teacher_graph keeps for good: the memory in which the teacher's forward works.

    examples     randcond plan                  GPU-hours and disk of every table, and of all together
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
    repetition = [run for run in runs if run.overrides == runs[0].overrides]  # all take the same
    configs = [run.config for run in repetition if run.config.trains]
    if not configs:
        raise UserError(
            f"{experiment}: has no student; what is planned are trainings, with their caches and evaluations"
        )

    from randcond.launch.planning import costs, planner, pricing

    cluster, results = costs.Cluster(found, nodes, gpus), []
    for config in configs:
        sizes = costs.counted(config)
        if curve:
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
        print(json_library.dumps(results, indent=1))
    elif experiment in table_names() and not (curve or sweep):
        prices = pricing.Prices(cluster, share)
        made = [(run.experiment, prices.of(run.config)[0]) for run in runs]
        unknown = {name for name, artefacts in made if not artefacts}
        if len(unknown) < len(made):
            hours, gb = pricing.together(each for _, artefacts in made for each in artefacts)
            print(f"{experiment}, what its rows share once: {hours:,.0f} GPU-hours, {gb:,.0f} GB on disk")
            if unknown:
                print(f"not in it, their networks' costs are not known here: {', '.join(sorted(unknown))}")


def _print_all(cluster: "costs.Cluster", gpu: str, share: float, source: str, json: bool) -> None:
    """GPU-hours and disk of each of the paper's tables alone, and of all together."""
    from randcond.launch.planning import pricing

    prices = pricing.Prices(cluster, share)
    rows: list[dict[str, Any]] = []
    everything, unknown, too_large = [], set(), set()
    for name in Progress([name for name in table_names() if find_table(name).parent.name == "paper"], desc="pricing"):
        runs = runs_of(name, [])
        made = []
        for run in runs:
            artefacts, fits = prices.of(run.config)
            made += artefacts
            unknown |= set() if artefacts else {run.experiment}
            too_large |= set() if fits else {run.experiment}
        hours, gb = pricing.together(made)
        rows.append({"table": name, "runs": len(runs), "gpu_hours": hours, "gb": gb})
        everything += made
    hours, gb = pricing.together(everything)
    trained = len({each.folder for each in everything if each.kind == "run"})
    rows.append({"table": "all, what they share once", "runs": trained, "gpu_hours": hours, "gb": gb})
    if json:
        print(json_library.dumps(rows, indent=1))
        return
    print(f"{cluster.nodes} x {cluster.per_node} {gpu} at {share:.0%} of the peak ({source})\n")
    print(f"{'':28}{'runs':>8}{'GPU-hours':>12}{'days here':>12}{'disk, GB':>12}")
    for row in filter(lambda row: row["runs"], rows):
        days = row["gpu_hours"] / (24 * cluster.ranks)
        print(f"{row['table']:28}{row['runs']:8}{row['gpu_hours']:12,.0f}{days:12.1f}{row['gb']:12,.0f}")
    if unknown:
        print(f"\nnot priced, their networks' costs are not known here: {', '.join(sorted(unknown))}")
    if too_large:
        print(f"\nDOES NOT FIT; `randcond plan NAME` says what makes it fit: {', '.join(sorted(too_large))}")


def _efficiency(said: str) -> tuple[float, str]:
    """The share of the peak, and where it is from."""
    if not said:
        return ASSUMED_EFFICIENCY, "assumed; give --efficiency"
    if Path(said).is_dir():
        return _reached(Path(said)), f"measured in {said}"
    try:
        value = float(said)
    except ValueError:
        raise UserError(f"--efficiency: a number between 0 and 1, or a run's folder, got {said!r}") from None
    if not 0 < value <= 1:
        raise UserError(f"--efficiency: a share of the peak, above 0 and at most 1, got {said}")
    return value, "given"


def _reached(run: Path) -> float:
    """A run's median MFU, what activation checkpointing computed once more counted: MFU leaves that out."""
    from randcond.launch.planning import costs, step_time

    config = load_config(str(run / "config.yaml"))
    sizes = costs.counted(config)
    passes = step_time.student_passes(config)
    done = sizes.teacher.flop + passes * sizes.student.flop
    return _median_mfu(run) * done / (sizes.teacher.flop + 3 * sizes.student.flop)


def _median_mfu(run: Path) -> float:
    shares = [line.get("mfu") or 0.0 for _, line in whole_lines(run / "metrics.jsonl")]
    values = [share for share in shares if share > 0 and isfinite(share)]
    if not values:
        raise UserError(f"--efficiency: {run} has no metrics.jsonl with an mfu (known on GPUs); give a number")
    return median(values)


def page(config: Config, found: dict[str, Any], gpu: str, source: str) -> str:
    """One experiment's plan, to read."""
    room = found["gpu"]["memory_gb"]
    lines = [
        f"{found['experiment']}: {config.student.rule} of {config.teacher.path}",
        f"on {found['nodes']} x {found['gpus'] // found['nodes']} {gpu}, {found['engine']}, {config.engine.precision}: "
        f"global batch {found['global_batch']} = {found['gpus']} GPUs x {found['micro_batch']} samples x "
        f"{found['accumulation']} micro-batches",
        "",
        f"memory per GPU, GB (of {room:g}, {found['usable']:.0%} usable)",
        *(f"  {part:32}{size:8.2f}" for part, size in found["memory_gb"].items()),
        f"  {'sum':32}{found['needed_gb']:8.2f}  {'fits' if found['fits'] else 'DOES NOT FIT'}",
    ]
    if not found["fits"]:
        lines += [f"  fits with  {words}  ({gb:.1f} GB)" for words, gb in found["knobs"]] or [
            "  no engine setting makes it fit: a GPU with more memory, more hosts, or a smaller student or teacher"
        ]
    lines += [
        "",
        f"a step at {found['efficiency']:.0%} of the peak ({source}): {_time(found['step_seconds'])}",
        f"  arithmetic {_time(found['arithmetic_seconds'])}; {_time(found['idle_seconds'])} more as "
        f"{found['micro_batch']} samples at once keep {found['filled']:.0%} of the cores busy "
        f"that {found['full_at']} do",
        f"  traffic {_time(found['traffic_seconds'])} "
        f"({found['traffic_gb']:.2f} GB sent per GPU); {found['samples_per_second']:.0f} samples/s",
        "",
        f"  {'':8}{'samples':>14}{'time':>12}{'GPU-hours':>12}",
        *(
            f"  {stage:8}{row['samples']:14,}{_time(3600 * row['hours']):>12}{row['gpu_hours']:12.1f}"
            for stage, row in found["stages"].items()
        ),
    ]
    if config.engine.precision == "fp32" or config.teacher.dtype == "fp32":
        lines += [
            "",
            "fp32 is asked for: GPUs reach a fraction of their bf16 peak in it; give --efficiency accordingly.",
        ]
    return "\n".join([*lines, ""])


def sweep_table(config: Config, rows: list[dict[str, Any]], gpu: str, source: str) -> str:
    """The sweep, to read: what fits, and of each engine and number of GPUs."""
    head = f"{'GPUs':>5}  {'engine':12}{'micro':>6}{'accum.':>7}{'GB':>8}  {'fits':5}{'filled':>7}{'arithmetic':>11}"
    head += f"{'traffic':>9}{'sent GB':>9}{'samples/s':>11}{'train GPU-h':>13}"
    lines = [
        f"{rows[0]['experiment']}: {config.student.rule} of {config.teacher.path}, {config.engine.precision}, "
        f"global batch {config.train.global_batch}, {gpu} at {rows[0]['efficiency']:.0%} of its peak ({source})",
        head,
    ]
    for row in rows:
        line = (
            f"{row['gpus']:5}  {row['engine']:12}{row['micro_batch']:6}{row['accumulation']:7}{row['needed_gb']:8.1f}  "
        )
        line += f"{'yes' if row['fits'] else 'no':5}{row['filled']:7.0%}{_time(row['arithmetic_seconds']):>11}"
        line += f"{_time(row['traffic_seconds']):>9}{row['traffic_gb']:9.2f}{row['samples_per_second']:11.0f}"
        lines.append(line + f"{row['stages']['train']['gpu_hours']:13.1f}")
    from randcond.launch.planning.planner import SWEEP_GPUS

    tried = max(row["gpus"] for row in rows)
    if 2 * tried <= SWEEP_GPUS:
        lines.append(
            f"more than {tried} GPUs: the global batch of {config.train.global_batch} does not divide over them"
        )
    return "\n".join([*lines, ""])


WORN = 0.8  # of what a GPU does alone: below it, more GPUs are badly used


def curve_table(config: Config, rows: list[dict[str, Any]], gpu: str, source: str) -> str:
    """The curve, to read."""
    lines = [
        f"{rows[0]['experiment']}: {config.student.rule} of {config.teacher.path}, {config.engine.precision}, "
        f"global batch {config.train.global_batch}, {gpu} at {rows[0]['efficiency']:.0%} of its peak ({source})",
        f"{'GPUs':>5}  {'engine':12}{'micro':>6}{'filled':>8}{'step':>10}{'samples/s':>11}{'per GPU':>9}{'of one':>8}",
    ]
    alone = rows[0]["samples_per_second"] / rows[0]["gpus"]
    worn = None
    for row in rows:
        each = row["samples_per_second"] / row["gpus"]
        worn = worn or (row if each < WORN * alone else None)
        line = f"{row['gpus']:5}  {row['engine']:12}{row['micro_batch']:6}{row['filled']:8.0%}"
        line += f"{_time(row['step_seconds']):>10}{row['samples_per_second']:11.0f}{each:9.1f}{each / alone:8.0%}"
        lines.append(line)
    if worn:
        said = (
            f"from {worn['gpus']} GPUs on, {worn['micro_batch']} samples at once, a GPU does under {WORN:.0%} of what"
        )
        lines.append(f"{said} {rows[0]['gpus']} alone does: fewer GPUs, or a larger batch")
    return "\n".join([*lines, ""])


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
