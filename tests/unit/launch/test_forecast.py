"""Forecasts of every stage on this machine: what is left, what does not fit, and what makes it fit."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from randcond.launch.config.experiments import load_config
from randcond.launch.config.gpus import Gpu, find_gpu
from randcond.launch.config.sections import Config
from randcond.launch.device.drawing import JUDGE, grid_memory, held_by_training, largest_batch, largest_eval_batch
from randcond.launch.device.forecast import GRIDS, StageForecast, faults, forecast, forecast_all, table
from randcond.launch.device.here import Here
from randcond.launch.device.remedies import host_remedy
from randcond.launch.device.saving import host_bytes
from randcond.launch.planning.costs import Cluster, counted
from randcond.launch.planning.fitting import USABLE, changed, training_memory, ways_to_fit

SD = ["teacher.path=sd-v1-4", "teacher.dtype=bf16", "engine.precision=bf16", "eval.metrics=[clip]"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return load_config("demo-with", ["cache.batch=null", "eval.batch=null", "engine.micro_batch=null"])


@pytest.mark.heavy
def test_what_does_not_fit_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = Here("a small card", Gpu(30, 8, 16, 3, 24))
    given = load_config("demo-with", [*SD, "cache.batch=50", "engine.micro_batch=16", "cache.size=1000"])
    rows = list(forecast(given, Cluster(card.gpu, 1, 1), card))
    assert [row.stage for row in rows] == ["pool", "cache", "train", "eval"]
    said = list(faults(rows, card))
    assert any(text.startswith("demo-with: train needs ") and "7.6 GB usable" in text for text in said)
    assert "DOES NOT FIT" in table(rows, card)
    assert all(row.hours > 0 and row.disk_gb > 0 for row in rows if row.stage in ("cache", "train"))
    roomy = Here("a large card", find_gpu("h200"))
    rows = list(forecast(given, Cluster(roomy.gpu, 1, 1), roomy))
    assert not any(row.remedy for row in rows)  # whether the 42 GB fit a disk depends on the machine
    assert all(text.startswith("disk: ") for text in faults(rows, roomy))


def test_a_disk_that_is_too_small_is_said_before_any_work(config: Config) -> None:
    huge = load_config("demo-with", ["cache.size=1_000_000_000_000", "cache.captions=[none.txt]"])
    card = Here("a large card", find_gpu("h200"))
    said = list(faults(list(forecast(huge, Cluster(card.gpu, 1, 1), card)), card))
    assert len(said) == 1 and said[0].startswith("disk: ") and "are free: free disk space" in said[0]


def rows_of(config: Config) -> dict[str, StageForecast]:
    card = Here("a large card", find_gpu("h200"))
    return {row.stage: row for row in forecast(config, Cluster(card.gpu, 1, 1), card)}


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_a_forecast_is_about_what_is_left(config: Config) -> None:
    paths, shards, whole = config.paths, config.cache.size // config.cache.shard_size, rows_of(config)
    for number in range(shards // 2):
        write(Path(paths.cache, f"latents-{number:05d}.tar"), 1000)
    write(Path(paths.run, "checkpoints/step-00000070/rank-0000.safetensors"), 1_000_000)
    left = rows_of(config)
    assert left["cache"].hours == pytest.approx(whole["cache"].hours * (1 - shards // 2 / shards))
    assert left["cache"].disk_gb == pytest.approx(whole["cache"].disk_gb - shards // 2 * 1e-6)
    assert left["train"].hours == pytest.approx(whole["train"].hours * (1 - 70 / config.train.steps))
    assert left["train"].disk_gb == pytest.approx(whole["train"].disk_gb - 1e-3)
    write(Path(paths.run, "checkpoints/step-00000350/rank-0000.safetensors"), 1 << 40)  # a sparse file
    assert rows_of(config)["train"].disk_gb == 0  # what is there already needs no free space


def test_a_finished_training_that_goes_on_is_not_done(config: Config) -> None:
    done = Path(config.paths.run, "train.json")
    write(Path(config.paths.run, "checkpoints/step-00000350/rank-0000.safetensors"), 1000)
    done.write_text(json.dumps({"steps": config.train.steps}))
    scores = Path(config.paths.run, f"eval-{config.eval.weights}/scores.json")
    write(scores, 10)
    assert rows_of(config)["train"].done and rows_of(config)["eval"].done
    longer = replace(config, train=replace(config.train, steps=2 * config.train.steps))
    whole = rows_of(replace(longer, paths=replace(longer.paths, run="elsewhere")))["train"]
    assert not rows_of(longer)["eval"].done
    assert not rows_of(longer)["train"].done and rows_of(longer)["train"].hours == pytest.approx(whole.hours / 2)


@pytest.mark.parametrize("ranks", [3, 5])
def test_ranks_that_do_not_divide_over_cores_are_forecast(ranks: int, config: Config) -> None:
    whole = replace(config, train=replace(config.train, global_batch=5 * 3 * 2))
    assert f"{ranks} x" in forecast_all([whole], ranks=ranks)[0]


def test_what_makes_it_fit_is_not_refused_by_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = Here("a small card", Gpu(58, 12, 32, 3, 46))
    config = load_config("demo-with", [*SD, "engine.micro_batch=1", "cache.shard_size=1024", "cache.batch=null"])

    def said() -> str:
        return " ".join(faults(list(forecast(config, Cluster(card.gpu, 1, 1), card)), card))

    assert "teacher.dtype=int8" in said() and "NEW" not in said()
    write(Path(config.paths.run, "checkpoints/step-00000070/rank-0000.safetensors"), 1000)
    Path(config.paths.cache).mkdir(parents=True)
    Path(config.paths.cache, "plan.json").write_text('{"batch": 1024}')
    assert "teacher.dtype=int8 paths.cache=NEW paths.run=NEW" in said(), said()
    assert re.search(r"set cache\.batch=\d+ paths\.cache=NEW: the one at .* was begun in batches of 1024", said())


def test_an_evaluation_must_fit_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = Here("a card of 24 GB", find_gpu("rtx4090"))
    cluster = Cluster(card.gpu, 1, 1)

    def said(*overrides: str) -> str:
        config = load_config("b-base", ["teacher.path=sd-v1-4", "cache.size=1024", *overrides])
        return " ".join(text for text in faults(list(forecast(config, cluster, card)), card) if "disk" not in text)

    with_it = said()
    assert "b-base: train needs 3" in with_it and "beside the training; set train.eval_every=0" in with_it
    assert said("train.eval_every=0") == "" and said("eval.metrics=[fid]", "eval.batch=null") == ""
    config = load_config("b-base", ["teacher.path=sd-v1-4", "eval.metrics=[fid]", "engine.micro_batch=4"])
    held = held_by_training(config, counted(config), cluster)
    alone, beside = (largest_batch(config, counted(config, "eval"), cluster, "eval", size) for size in (0, held))
    assert alone and beside and alone > beside and held > 10e9


def test_the_judge_of_a_benchmark_is_not_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = Here("a card of 80 GB", find_gpu("h100"))
    needed: dict[str, tuple[float, float]] = {}
    batches: dict[str, list[int]] = {}
    for prompts in ("null", "geneval2.jsonl"):
        words = ["teacher.path=sd-v1-4", "cache.size=1024", "eval.batch=8", "eval.cost=false", "engine.micro_batch=4"]
        config = load_config("b-base", [*words, "train.eval_every=1000", f"eval.geneval2.prompts={prompts}"])
        rows = {row.stage: row for row in forecast(config, Cluster(card.gpu, 1, 1), card)}
        needed[prompts] = rows["train"].needed_gb, rows["eval"].needed_gb
        sizes, cluster = counted(config, "eval"), Cluster(find_gpu("a100-40"), 1, 1)
        batches[prompts] = [largest_eval_batch(config, sizes, cluster, int(beside)) or 0 for beside in (0, 10e9, 25e9)]
    without, judged = needed.values()
    assert judged[0] == without[0] and judged[1] == pytest.approx(without[1] + JUDGE / 1e9)
    plain, limited = batches.values()  # one batch serves both kinds of evaluations, so the judge limits it
    assert plain[0] > limited[0] > plain[2] > 0 and limited == [min(limited[0], batch) for batch in plain], batches


def test_sample_grids_must_fit_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*SD, "engine.micro_batch=1", "engine.activation_checkpointing=true", "eval.metrics=[]", "eval.batch=1"]
    config, roomy = load_config("demo-with", [*settings, "train.sample_every=10"]), find_gpu("rtx4090")
    cluster = Cluster(roomy, 1, 1)
    step = sum(training_memory(config, counted(config), cluster).values())
    grid = grid_memory(config, counted(config), cluster)
    assert grid > step and grid_memory(load_config("demo-with", settings), counted(config), cluster) == grid
    card = Here("a card", replace(roomy, memory_gb=(grid + step) / 2e9 / USABLE))
    for words, wrong in (([], [GRIDS]), (["train.sample_every=0"], [])):
        config = load_config("demo-with", [*settings, "train.sample_every=10", *words])
        rows = {row.stage: row for row in forecast(config, Cluster(card.gpu, 1, 1), card)}
        assert [row.remedy for row in rows.values() if row.remedy] == wrong
        assert rows["train"].needed_gb == pytest.approx((step if words else grid) / 1e9)


def test_on_a_cpu_the_ema_of_the_host_saves_nothing() -> None:
    needed = {}
    for host in (False, True):
        cluster = Cluster(replace(find_gpu("rtx4060"), host=host), 1, 1)
        for where in ("device", "cpu", "off"):
            config = load_config("demo-with", [*SD, "engine.micro_batch=1", "eval.weights=raw", f"engine.ema={where}"])
            needed[host, where] = sum(training_memory(config, counted(config), cluster).values())
    assert needed[False, "cpu"] == needed[False, "off"] < needed[False, "device"]
    assert needed[True, "off"] < needed[True, "cpu"] == needed[True, "device"] == needed[False, "device"]
    config = load_config("demo-with", [*SD, "engine.micro_batch=1"])
    tight = replace(find_gpu("rtx4060"), memory_gb=needed[True, "cpu"] / USABLE / 1e9 - 1, host=True)
    assert not any("engine.ema" in change for change, _ in ways_to_fit(config, counted(config), Cluster(tight, 1, 1)))


def test_work_that_experiments_share_counts_once(config: Config) -> None:
    without = load_config("demo-without")
    text, wrong = forecast_all([load_config("demo-with"), without], ranks=2)
    assert not wrong and text.count("cache demo") == 1 and text.count("train demo") == 2


def test_an_odd_micro_batch_that_does_not_fit_has_a_smaller_one_that_does() -> None:
    config = load_config("demo-with", [*SD, "train.global_batch=75", "engine.micro_batch=25"])
    sizes, card = counted(config), find_gpu("rtx4090")

    def needed(micro: int) -> int:
        return sum(training_memory(changed(config, {"engine.micro_batch": micro}), sizes, Cluster(card, 1, 1)).values())

    between = replace(card, memory_gb=(needed(5) + needed(25)) / 2e9 / USABLE)
    ways = [change for change, _ in ways_to_fit(config, sizes, Cluster(between, 1, 1))]
    assert ways[0] == {"engine.micro_batch": 5} and {"engine.micro_batch": 1} not in ways


def test_a_checkpoint_must_fit_the_hosts_memory() -> None:
    card = Here("two cards", find_gpu("h200"), host_gb=20)
    config = load_config("b-base", ["teacher.path=sd-v1-4", "cache.size=1024", "train.global_batch=64"])
    trained = counted(config).trained

    def of_training(here: Here, nodes: int, **engine: Any) -> StageForecast:
        given = replace(config, engine=replace(config.engine, **engine))
        return next(row for row in forecast(given, Cluster(here.gpu, nodes, 2), here) if row.stage == "train")

    assert of_training(card, 1).host_gb == pytest.approx(16e-9 * trained, rel=1e-6)  # weights, EMA, two moments
    assert of_training(card, 1, ema="off").host_gb == pytest.approx(12e-9 * trained, rel=1e-6)
    assert of_training(card, 1, ema="cpu").host_gb == pytest.approx(20e-9 * trained, rel=1e-6)
    assert of_training(card, 2).host_gb == pytest.approx(8e-9 * trained, rel=1e-6)
    hybrid = of_training(card, 2, kind="fsdp", sharding="hybrid")  # only one host writes
    assert hybrid.host_gb == pytest.approx(16e-9 * trained, rel=1e-6)
    assert of_training(card, 2, zero_stage=0, precision="fp32").host_gb == hybrid.host_gb

    def said_of(here: Here) -> list[str]:
        return [text for text in faults([of_training(card, 1)], here) if "disk" not in text]

    assert not said_of(card)
    said = said_of(replace(card, host_gb=9))
    assert len(said) == 1 and "a checkpoint is copied into the host's memory" in said[0] and "9.0 GB" in said[0]


def test_text_encoders_and_their_cache_take_the_hosts_memory() -> None:
    needed: dict[str, dict[bool, int]] = {}
    for words in ("teacher.text_cache_gb=0", "teacher.text_cache_gb=40", "teacher.text_device=cpu"):
        needed[words] = {}
        config = load_config("demo-with", [*SD, "engine.micro_batch=1", words])
        for host in (False, True):
            cluster = Cluster(replace(find_gpu("h200"), host=host), 1, 2)
            needed[words][host] = host_bytes(config, counted(config), cluster)
    plain, cached, away = needed.values()
    text = 2 * counted(config).loaded_text_bytes(config.teacher)
    assert cached[False] - plain[False] == cached[True] - plain[True] == 2 * 40e9
    assert away[False] - plain[False] == text and text > away[True] - plain[True] >= 0
    assert "smaller teacher.text_cache_gb" in host_remedy(load_config("demo-with", [*SD, "teacher.text_cache_gb=40"]))


def test_on_a_cpu_a_checkpoint_comes_on_top_of_the_training() -> None:
    config = load_config("demo-with", SD)
    cluster = Cluster(replace(find_gpu("h200"), host=True), 1, 2)
    memory, copied = training_memory(config, counted(config), cluster), 16 * counted(config).trained
    row = next(row for row in forecast(config, cluster, Here("CPU", cluster.gpu)) if row.stage == "train")
    between = sum(
        size for part, size in memory.items() if part not in ("activations", "text encoding", "gathered in a step")
    )
    assert row.host_gb == pytest.approx((2 * between + copied) / 1e9)
