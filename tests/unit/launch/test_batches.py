"""Batches that are left to the planner: chosen once, kept in the artefact's folder, named where memory runs out."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from randcond.data.cache import caching
from randcond.eval.scores.metrics import METRICS
from randcond.launch.config.engines import batch_shape
from randcond.launch.config.experiments import load_config
from randcond.launch.config.gpus import find_gpu, gpu_of, short_name
from randcond.launch.config.sections import Config
from randcond.launch.device import batches, here
from randcond.launch.device.batches import (
    recorded_cache_batch,
    recorded_eval_batch,
    recorded_micro_batch,
    with_cache_batch,
    with_eval_batch,
    with_micro_batch,
)
from randcond.launch.device.drawing import drawing_memory, largest_batch
from randcond.launch.device.here import device_here
from randcond.launch.device.out_of_memory import naming_memory, smaller_batch
from randcond.launch.errors import UserError
from randcond.launch.planning.costs import Cluster, counted
from randcond.model_zoo.networks import OtherNetworks
from randcond.train import loop

OPEN = ["cache.batch=null", "eval.batch=null", "engine.micro_batch=null"]
SD = ["teacher.path=sd-v1-4", "teacher.dtype=bf16", "engine.precision=bf16", "eval.metrics=[clip]"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return load_config("demo-with", OPEN)


@pytest.mark.heavy
def test_a_batch_is_recorded_and_kept(config: Config) -> None:
    micro = with_micro_batch(config).engine.micro_batch
    assert micro == config.train.global_batch  # one rank, and little memory is needed
    cached, drawn = with_cache_batch(config).cache.batch, with_eval_batch(config).eval.batch
    assert (cached, drawn) == (50, 64)  # the largest divisor of the shard size; as many as are worth it
    for record, kept in (
        (Path(config.paths.run) / "micro_batch-64-on-1.json", lambda: with_micro_batch(config).engine.micro_batch),
        (Path(config.paths.cache) / "batch.json", lambda: with_cache_batch(config).cache.batch),
        (Path(config.paths.reference) / "batch.json", lambda: with_eval_batch(config).eval.batch),
    ):
        assert json.loads(record.read_text())["batch"] == kept()
        record.write_text(json.dumps({"batch": 2}))
        assert kept() == 2
        record.write_text(json.dumps({"batch": "many"}))
        with pytest.raises(UserError, match=f"{record.name}: batch is 'many', expected a number of samples"):
            kept()


def test_the_plan_of_an_artefact_counts_more_than_the_record(config: Config) -> None:
    for folder, recorded in ((config.paths.cache, recorded_cache_batch), (config.paths.reference, recorded_eval_batch)):
        assert recorded(config) is None
        Path(folder).mkdir(parents=True)
        (Path(folder) / "batch.json").write_text('{"batch": 5}')
        assert recorded(config) == 5
        (Path(folder) / "plan.json").write_text('{"batch": 25}')
        assert recorded(config) == 25
    Path(config.paths.cache, "plan.json").write_text('{"batch": 32}')
    with pytest.raises(UserError, match=r"cache\.shard_size: is 50, but the cache at .* is made in batches of 32"):
        recorded_cache_batch(config)


def test_an_older_run_with_an_fp8_teacher_keeps_its_micro_batch(config: Config) -> None:
    """It took all samples of a rank at once, and has no record of that."""
    fp8 = replace(config, engine=replace(config.engine, teacher_fp8=True))
    Path(config.paths.run, "checkpoints/step-00000004").mkdir(parents=True)
    assert [recorded_micro_batch(fp8, ranks) for ranks in (1, 2)] == [64, 32]
    assert recorded_micro_batch(config, 2) is None
    (Path(config.paths.run) / "micro_batch-64-on-1.json").write_text('{"batch": 16}')
    assert [recorded_micro_batch(fp8, ranks) for ranks in (1, 2)] == [16, None]


def test_a_batch_that_is_given_needs_no_record(config: Config) -> None:
    given = load_config("demo-with", ["engine.micro_batch=4", "eval.batch=3"])
    assert with_micro_batch(given) == with_eval_batch(given) == with_cache_batch(given) == given
    assert not Path("runs").exists()


@pytest.mark.heavy
def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from randcond.launch.device.batches import _record\n"
        "sys.stdin.read(); print(_record(Path('folder/batch.json'), int(sys.argv[1])))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)], cwd=tmp_path, text=True, stdin=-1, stdout=subprocess.PIPE
        )
        for number in range(1, 5)
    ]
    found = {each.communicate()[0].strip() for each in started}
    assert len(found) == 1 and found < {str(number) for number in range(1, 5)}
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["batch.json"]


def test_without_links_the_first_rank_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(batches, "_PATIENCE", 0.2)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match=r"batch\.json: rank 0 has not recorded a batch there"):
        batches._record(tmp_path / "batch.json", 7)
    monkeypatch.setenv("RANK", "0")
    assert batches._record(tmp_path / "batch.json", 5) == 5
    monkeypatch.setenv("RANK", "1")
    assert batches._record(tmp_path / "batch.json", 7) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["batch.json"]


def test_a_published_model_of_another_kind_is_drawn_in_batches_of_32(config: Config, tmp_path: Path) -> None:
    for index, reason in (
        ({"_class_name": "SanaPipeline"}, "its pipeline is SanaPipeline, so its costs are unknown"),
        ({"_class_name": "StableDiffusionPipeline", "unet": ["x", "Kandinsky3UNet"]}, "unet is a Kandinsky3UNet"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        other = replace(config, teacher=replace(config.teacher, path=str(tmp_path)))
        with pytest.raises(OtherNetworks, match=reason):
            counted(other)
        assert with_eval_batch(other).eval.batch == 32


def test_every_metric_that_reads_inception_takes_its_memory(config: Config) -> None:
    cluster, sizes = Cluster(find_gpu("h200"), 1, 1), counted(config)

    def scoring(*metrics: str) -> int:
        drawn = replace(config, eval=replace(config.eval, metrics=list(metrics)))
        return drawing_memory(drawn, sizes, cluster, "eval", 8)["scoring"]

    assert scoring() == scoring("digits") == 0
    readers = {name for name, metric in METRICS.items() if "inception" in metric.needs.values()}
    assert {name: scoring(name) for name in METRICS if scoring(name) == scoring("fid")}.keys() == readers


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["rtx4060", "rtx4090", "h200", "11GB,27TFLOPS"])
def test_the_largest_batch_of_drawing_fits_and_divides_the_shards(name: str) -> None:
    config = load_config("demo-with", [*SD, *OPEN, "cache.size=1024", "cache.shard_size=1024", "eval.size=1000"])
    cluster, sizes = Cluster(find_gpu(name), 1, 1), counted(config)
    usable = 0.95e9 * cluster.gpu.memory_gb
    cached, drawn = largest_batch(config, sizes, cluster, "cache"), largest_batch(config, sizes, cluster, "eval")
    assert cached and 1024 % cached == 0
    assert sum(drawing_memory(config, sizes, cluster, "cache", cached).values()) <= usable
    assert cached == 64 or sum(drawing_memory(config, sizes, cluster, "cache", 2 * cached).values()) > usable
    if drawn is None:  # ViT-g-14 alone takes 5.5 GB, and decoding a megapixel in fp32 3.2 GB
        assert cluster.gpu.memory_gb < 12
        return
    assert sum(drawing_memory(config, sizes, cluster, "eval", drawn).values()) <= usable
    assert drawn == 64 or sum(drawing_memory(config, sizes, cluster, "eval", drawn + 1).values()) > usable


def test_the_device_of_this_machine() -> None:
    one, two = (device_here(ranks, torch.float32) for ranks in (1, 2))
    if one.cpu:
        assert one.gpu.memory_gb > 0.1 and two.gpu.memory_gb == pytest.approx(one.gpu.memory_gb / 2, rel=0.2)
    assert one.gpu.tflops > 0


def test_in_a_container_others_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks of a job share the limit of its container, and the page cache gives way."""
    for version, (_, *names) in enumerate(here._CGROUPS):
        folder = tmp_path / str(version)
        folder.mkdir()
        for name, value in zip(names[:2], ("3000000000", "2500000000"), strict=True):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{names[2]} 100000000\nfile 5\n")
        monkeypatch.setattr(here, "_CGROUPS", ((folder, *names),))
        assert here._available() == 600_000_000
        (folder / names[0]).write_text("max\n")
        assert here._available() > 0
        monkeypatch.undo()


def test_a_gpu_is_known_by_its_own_name_alone() -> None:
    for name, short in (
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA GeForce RTX 4070", "rtx4070"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ):
        assert short_name(name) == short
    for name in ("L40", "A10G", "GeForce RTX 4070 Ti SUPER", "GeForce RTX 4090 Laptop GPU", "H100 PCIe MIG 1g.10gb"):
        assert gpu_of(f"NVIDIA {name}") is None, name  # its speed is measured


OUT_OF_MEMORY = """
import resource, torch
from randcond.launch.device.out_of_memory import naming_memory, smaller_batch
from randcond.launch.runtime.exit_codes import report_error
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
try:
    with naming_memory(smaller_batch("engine.micro_batch", 64, 64, others="engine.activation_checkpointing=true")):
        torch.zeros(1 << 33)
except Exception as error:
    raise SystemExit(report_error(error))
"""


def test_running_out_of_memory_names_the_key() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert done.returncode == 2
    assert "out of memory: set engine.micro_batch=32 (now 64), or engine.activation_checkpointing=true" in (
        done.stdout + done.stderr
    )
    with pytest.raises(RuntimeError, match="another fault"), naming_memory("set less"):
        raise RuntimeError("another fault")
    for error in (MemoryError(), torch.OutOfMemoryError("none left"), RuntimeError("CUDA error: out of memory")):
        with pytest.raises(UserError, match=r"out of memory: set less; other programs"), naming_memory("set less"):
            raise error


def test_the_batch_that_is_proposed_is_one_that_is_taken() -> None:
    for per_rank in (15, 49, 64, 1000):
        for micro in (size for size in range(2, per_rank + 1) if per_rank % size == 0):
            said = smaller_batch("engine.micro_batch", micro, per_rank)
            lower = int(said.partition("=")[2].partition(" ")[0])
            assert lower <= micro // 2 and said == f"set engine.micro_batch={lower} (now {micro})"
            batch_shape(per_rank, 1, lower)  # raises UserError
    assert smaller_batch("eval.batch", 7) == "set eval.batch=3 (now 7)"
    assert smaller_batch("cache.batch", 1, 50, ", and more", "another=1") == "cache.batch is 1 already; set another=1"


def test_a_way_out_of_memory_is_not_refused_by_what_was_begun(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr("randcond.data.cache.latent_source.TeacherLatents.latents", full)
    begun = replace(config, cache=replace(config.cache, size=50, batch=50))
    with pytest.raises(UserError, match=r"set cache\.batch=25 \(now 50\), with another paths\.cache, because"):
        caching.run(begun)
    monkeypatch.setattr("randcond.train.loop.set_up", full)
    with pytest.raises(UserError, match=r"the training's state do not fit; set engine\.ema=cpu"):
        loop.run(config)
    lower = replace(begun, cache=replace(begun.cache, batch=25))
    with pytest.raises(UserError, match="batch"):  # so the same folder would not do
        caching.run(lower)
    with pytest.raises(UserError, match=r"out of memory: set cache\.batch=10 \(now 25\)"):
        caching.run(replace(lower, paths=replace(lower.paths, cache="another")))
