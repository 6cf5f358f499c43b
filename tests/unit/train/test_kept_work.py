"""A check says that a kept cache, pool or run has other settings, before any work."""

from pathlib import Path

import pytest

from randcond.data.cache.latent_source import cache_identity
from randcond.data.captions.pool import pool_identity
from randcond.launch.config.experiments import load_config
from randcond.launch.config.tables import load_runs
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json
from randcond.train import dryrun
from randcond.train.state.identity import run_settings
from randcond.train.state.kept_work import check_kept


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [f"paths.{name}={tmp_path / name}" for name in ("cache", "pool", "run", "reference")]


@pytest.fixture
def kept(words: list[str], tmp_path: Path) -> Path:
    """A folder with the records of a cache, a pool, and a run that stopped at its second checkpoint."""
    config = load_config("demo-with", words)
    size = {"captions": config.cache.size, "shard_size": config.cache.shard_size}
    write_json(tmp_path / "cache/plan.json", {**size, **cache_identity(config), "teacher": "a fingerprint"})
    write_json(tmp_path / "pool/manifest.json", {"asked": pool_identity(config), "sha256": "", "damaged": {}})
    for step in (50, 100):
        identity = {**run_settings(config), "teacher": "a fingerprint", "cached": 1000}
        write_json(tmp_path / f"run/checkpoints/step-{step:08d}/manifest.json", {"identity": identity, "step": step})
    return tmp_path


def test_nothing_is_kept_yet(words: list[str]) -> None:
    check_kept(load_config("demo-with", words))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=1000", ""),
        ("engine.kind=fsdp", ""),
        (
            "cache.size=2000",
            r"the cache at .*cache does not match this experiment: cache\.size is 1000 there, 2000 here",
        ),
        (
            "cache.guidance=5.0",
            r"the cache at .* cache\.guidance is 3\.0 there, 5\.0 here\. .* give another paths\.cache",
        ),
        ("cache.shard_size=100", r"shard_size is 50 there, 100 here"),
        ("pool.seed=3", ""),  # of a part of a pool
        ("pool.min_length=3", r"the pool at .*pool does not match this experiment"),
        ("train.warmup=3", r"the run at .*run does not match this experiment: train\.warmup is 50 there, 3 here"),
        ("train.schedule=cosine", r"the run at .* train\.schedule is 'constant' there, 'cosine' here"),
        ("conditioning.p=linear", r"the run at .* conditioning\.p is 'exponential' there, 'linear' here"),
        ("engine.precision=bf16", r"the run at .* precision"),
    ],
)
def test_what_is_kept_is_compared(kept: Path, words: list[str], override: str, message: str) -> None:
    config = load_config("demo-with", [*words, override])
    if not message:
        check_kept(config)
        return
    with pytest.raises(UserError, match=message):
        check_kept(config)


def test_a_finished_cache_may_have_other_shards(kept: Path, words: list[str]) -> None:
    (kept / "cache/plan.json").rename(kept / "cache/manifest.json")
    check_kept(load_config("demo-with", [*words, "cache.shard_size=100"]))
    with pytest.raises(UserError, match=r"cache\.size is 1000 there, 2000 here"):
        check_kept(load_config("demo-with", [*words, "cache.size=2000"]))


def test_a_damaged_record_is_the_stages_affair(kept: Path, words: list[str]) -> None:
    (kept / "cache/plan.json").write_text("{")
    (kept / "run/checkpoints/step-00000100/manifest.json").write_text("{")
    check_kept(load_config("demo-with", words))
    with pytest.raises(UserError, match=r"train\.warmup is 50 there, 3 here"):
        check_kept(load_config("demo-with", [*words, "train.warmup=3"]))


def test_the_check_ends_with_2(kept: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dryrun.main(["demo-with", *words, "cache.size=2000"])
    assert ended.value.code == 2 and " done" not in capsys.readouterr().out


def test_each_repetition_of_a_table_is_compared(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(kept)
    run = load_runs("beyond-shift")["c"]["flow-shift-time"]
    size = {"captions": run.config.cache.size, "shard_size": run.config.cache.shard_size}
    plan = {**size, **cache_identity(run.config), "teacher": "a fingerprint"}
    folder = Path(run.config.paths.cache)
    write_json(folder / "plan.json", {**plan, "guidance": 7.0})
    with pytest.raises(SystemExit) as ended:
        dryrun.main(["beyond-shift"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and "error: flow-shift-sigma c: " in said.err and "guidance is 7.0" in said.err
    assert " a: " not in said.err and "train flow-shift-time x 5" in said.out  # c is not forecast
    write_json(folder / "plan.json", plan)
    with pytest.raises(SystemExit) as ended:
        dryrun.main(["beyond-shift"])
    said = capsys.readouterr()
    assert ended.value.code == 0 and "train flow-shift-time x 6" in said.out
    assert said.out.count("flow-shift-time: depth-4") == 1  # one line for all repetitions
