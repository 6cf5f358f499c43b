"""Experiments as strict YAML files: bases, overrides, and errors that name the key."""

from pathlib import Path

import pytest
import yaml

from randcond.launch.config import experiments as cfg
from randcond.launch.errors import UserError


def test_every_shipped_experiment_resolves_and_survives_a_round_trip(tmp_path: Path) -> None:
    for name in cfg.experiment_names():
        resolved = cfg.load_config(name)
        copy = tmp_path / f"{name}.yaml"
        copy.write_text(cfg.to_yaml(resolved))
        assert cfg.load_config(str(copy)) == resolved


def test_arms_of_the_demo_differ_in_p_alone() -> None:
    without, with_ = (cfg.to_dict(cfg.load_config(f"demo-{arm}")) for arm in ("without", "with"))
    differing = {
        f"{section}.{key}"
        for section, keys in without.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if with_[section][key] != value
    }
    assert differing == {"conditioning.p", "paths.run"}


def test_numbers_in_yaml_1_2_notation() -> None:
    assert cfg.load_config("demo-with", ["train.lr=5e-5"]).train.lr == 5e-5
    assert cfg.load_config("demo-with", ["train.lr=1"]).train.lr == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", r"train\.stepz: unknown key; did you mean 'steps'"),
        ("trian.steps=3", r"trian: unknown key; did you mean 'train'"),
        ("train.steps=many", r"train\.steps: .*integer.*'many'"),
        ("train.steps=true", r"train\.steps: .*integer"),
        ("train.steps=0", r"train\.steps: must be at least 1"),
        ("train=3", r"train: .*object"),
        ("student.init=magic", r"student\.init: .*'random' or 'teacher'"),
        ("cache.shard_size=60", r"cache\.shard_size: must be a multiple of cache\.batch"),
        ("conditioning.null=1.5", r"conditioning\.null: must be between 0 and 1, got 1\.5"),
        ("train.ema_decay=-1", r"train\.ema_decay: must be between 0 and 1"),
        ("train.betas=[0.9,1.5]", r"train\.betas: must be between 0 and 1, got 1\.5"),
        ("train.lr=.nan", r"train\.lr: .*finite number"),
        ("eval.guidance=.inf", r"eval\.guidance: .*finite number"),
        ("train.eval_every=-1", r"train\.eval_every: must be at least 0, got -1"),
        ("train.seed=-1", r"train\.seed: must be at least 0"),
        ("engine.threads=0", r"engine\.threads: must be at least 1"),
        ("engine.peak_tflops=0", r"engine\.peak_tflops: must be above 0"),
        ("train.keep_every=7", r"train\.keep_every: must be a multiple of train\.checkpoint_every"),
        (
            "engine.ema=off",
            r"eval\.weights: is ema, but engine\.ema is off; use eval\.weights=raw, or .*engine\.ema=cpu",
        ),
        ("paths=5", r"paths: .*object"),
        ("pool=3", r"pool: .*object"),
        (
            "conditioning.p_args={at:",
            r"override 'conditioning\.p_args=\{at:': the shell has split it at a blank: put quotes",
        ),
        ("eval.metrics=[digits,", "the shell has split it at a blank: put quotes around the whole word"),
        ("train.steps={a: 1, a: 2}", r"override 'train\.steps=\{a: 1, a: 2\}': .*'a' is written twice"),
        ("steps", "not of the form"),
    ],
)
def test_mistakes_name_the_key(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cfg.load_config("demo-with", [override])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine.ema=off", "eval.weights=raw", "train.eval_every=10"], r"train\.eval_weights: .*eval_weights=\[raw\]"),
        (["engine.ema=off", "eval.weights=raw", "train.eval_every=10", "train.eval_weights=[raw]"], ""),
        (["engine.ema=off", "eval.of=[teacher]"], ""),  # nothing is trained
        (["teacher.dtype=int8", "engine.teacher=sharded"], r"teacher\.dtype: int8 can't be combined"),
        (["teacher.dtype=int8", "engine.teacher_fp8=true"], r"teacher\.dtype: int8 can't be combined"),
        (["teacher.dtype=int8_dynamic", "engine.teacher=sharded"], r"teacher\.dtype: int8_dynamic can't be combined"),
    ],
)
def test_what_saves_memory_is_refused_where_it_can_not_work(words: list[str], message: str) -> None:
    if not message:
        assert cfg.load_config("demo-with", words)
        return
    with pytest.raises(UserError, match=message):
        cfg.load_config("demo-with", words)


def test_unknown_experiment_suggests_the_nearest() -> None:
    for wrong, near in (("demo-wiht", "did you mean 'demo-with'"), ("tabel1", "did you mean 'table1'")):
        with pytest.raises(UserError, match=near):
            cfg.load_config(wrong)


def test_bases_merge_key_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("base: demo-with\ntrain: {steps: 7}\n")
    base = {"base": ["../experiments-elsewhere"], "train": {"steps": 7}}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "demo-with.yaml").write_text((cfg.EXPERIMENTS / "demo-with.yaml").read_text())
    resolved = cfg.load_config(str(tmp_path / "low.yaml"), ["cache.exclude=[four, five]"])
    assert (resolved.train.steps, resolved.train.global_batch) == (7, 64)
    assert resolved.cache.exclude == ["four", "five"]
    with pytest.raises(UserError, match=r"base '\.\./experiments-elsewhere' not found"):
        cfg.load_config(str(tmp_path / "broken.yaml"))
    (tmp_path / "mine.yaml").write_text("base: b-base-random\ntrain: {steps: 7}\n")  # the base is a shipped experiment
    mine, theirs = cfg.load_config(str(tmp_path / "mine.yaml")), cfg.load_config("b-base-random")
    assert (mine.train.steps, mine.student) == (7, theirs.student) and mine.name == "mine"


def test_a_circle_of_bases_and_a_key_written_twice_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b\n")
    (tmp_path / "b.yaml").write_text("base: a\n")
    with pytest.raises(UserError, match="its own base"):
        cfg.load_config(str(tmp_path / "a.yaml"))
    (tmp_path / "d.yaml").write_text("base: 5\n")
    with pytest.raises(UserError, match=r"d\.yaml: base: expected a name or a list of names, got 5"):
        cfg.load_config(str(tmp_path / "d.yaml"))
    (tmp_path / "c.yaml").write_text("train:\n  steps: 1\n  steps: 2\n")
    with pytest.raises(UserError, match="'steps' is written twice"):
        cfg.load_config(str(tmp_path / "c.yaml"))
