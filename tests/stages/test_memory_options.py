"""Options that make a training fit a small device: nearly the same student, and an exact resume."""

import shutil
from pathlib import Path

import pytest
import torch

from randcond.train.state.checkpoint import newest_valid
from tests.support.demo import TINY, randcond
from tests.support.runs import metrics, same_bits, weights

EIGHT = [*TINY, "train.optimizer=adamw_8bit", "train.sample_every=0"]


def train(world: Path, run: str, *words: str, code: int = 0) -> str:
    """Trains the demo's arm in the folder `run`. Returns what the command printed."""
    done = randcond(world, "run", "train", "demo-with", *words, f"paths.run=runs/{run}", code=code)
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def untrained(world: Path) -> Path:
    """Returns a run whose weights are those before training."""
    train(world, "untrained", *TINY, "train.lr=0", "train.steps=1", "train.sample_every=0")
    return world / "runs/untrained"


def apart(one: Path, other: Path, untrained: Path) -> float:
    """Returns the distance between two runs' weights, as a share of how far the training moved those of `other`."""
    ours, theirs, start = weights(one), weights(other), weights(untrained)
    distance, way = (
        sum((theirs[name] - each[name]).double().square().sum().item() for name in theirs) ** 0.5
        for each in (ours, start)
    )
    return distance / way


def test_moments_in_8_bits_train_nearly_the_same_student_and_resume_exactly(
    world: Path, untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ZeRO-1 on two ranks. The second run stops at step 4, and has its EMA on the CPU until then."""
    train(world, "eight", *EIGHT)
    train(world, "eight-cut", *EIGHT, "engine.ema=cpu", "train.steps=4")
    assert "resuming from step 4" in train(world, "eight-cut", *EIGHT)
    assert same_bits(world / "runs/eight", world / "runs/eight-cut")
    share = apart(world / "runs/eight", world / "runs/demo/with", untrained)
    with capsys.disabled():
        print(f"\nAdamW in 8 bits after 12 steps: {share:.2%} of the way from AdamW's weights")
    assert 0 < share < 0.05
    for ours, theirs in zip(metrics(world / "runs/eight"), metrics(world / "runs/demo/with"), strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=0.01)
    refused = train(world, "eight", *TINY, code=2)
    assert "train.optimizer is 'adamw_8bit' there, 'adamw' here" in refused


@pytest.mark.slow
def test_an_ema_on_the_cpu_has_the_same_bits(world: Path) -> None:
    train(world, "ema-cpu", *TINY, "train.sample_every=0", "engine.ema=cpu", "engine.micro_batch=4", "train.steps=8")
    train(world, "ema-device", *TINY, "train.sample_every=0", "engine.micro_batch=4", "train.steps=8")
    assert same_bits(world / "runs/ema-cpu", world / "runs/ema-device")


@pytest.mark.long
def test_without_ema_weights_there_is_one_student(world: Path) -> None:
    run = world / "runs/ema-off"
    off = [*TINY, "train.sample_every=0", "engine.ema=off", "eval.weights=raw"]
    train(world, "ema-off", *off[:-2], "train.steps=4")  # with EMA weights, and a student of them
    assert (run / "student_ema").is_dir()
    said = train(world, "ema-off", *off)
    assert "resuming from step 4" in said and f"the student is at {Path('runs/ema-off/student')} (raw weights)" in said
    assert not (run / "student_ema").exists()
    assert all(torch.equal(a, b) for a, b in zip(
        weights(run).values(), weights(world / "runs/demo/with").values(), strict=True
    ))  # fmt: skip
    stored = newest_valid(run / "checkpoints")
    assert stored and stored.kinds == {"weights", "exp_avg", "exp_avg_sq"}
    before = (run / "train.json").stat().st_mtime_ns
    train(world, "ema-off", *off)  # is finished
    assert (run / "train.json").stat().st_mtime_ns == before
    randcond(world, "run", "eval", "demo-with", *off, "paths.run=runs/ema-off")
    randcond(world, "run", "report", "demo-with", *off, "paths.run=runs/ema-off")
    said = randcond(world, "export", "demo-with", *off, "paths.run=runs/ema-off", "--out", "off").stdout
    assert "exported raw weights in fp32 to off" in said
    words = ["export", "demo-with", *TINY, "paths.run=runs/ema-off", "--out", "none"]
    assert "trained with engine.ema=off; take its raw weights" in randcond(world, *words, code=2).stderr
    refused = train(world, "ema-off", *TINY, code=2)
    assert "has no EMA weights, because the run was trained with engine.ema=off" in refused


ENGINES = {
    "ZeRO-0": ["engine.zero_stage=0"],
    "ZeRO-2": ["engine.zero_stage=2"],
    "ZeRO-3 in bf16": ["engine.zero_stage=3", "engine.precision=bf16"],
    "ZeRO-1 in bf16": ["engine.zero_stage=1", "engine.precision=bf16"],
    "FSDP2": ["engine.kind=fsdp"],
    "FSDP2 in bf16": ["engine.kind=fsdp", "engine.precision=bf16"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_resumes_moments_in_8_bits_exactly(world: Path, name: str) -> None:
    words = [*EIGHT, *ENGINES[name], "engine.micro_batch=4"]
    whole, cut = (f"{kind}-{name.replace(' ', '-')}" for kind in ("whole", "cut"))
    train(world, whole, *words)
    train(world, cut, *words, "train.steps=4")
    assert "resuming from step 4" in train(world, cut, *words, "engine.ema=cpu")
    assert same_bits(world / "runs" / whole, world / "runs" / cut)


@pytest.mark.slow
def test_moments_in_8_bits_move_between_engines_and_world_sizes(world: Path, untrained: Path) -> None:
    """The blocks differ then. It changes the student less than 8 bits do."""
    train(world, "eight-still", *EIGHT)
    train(world, "eight-moving", *EIGHT, "train.steps=4")
    train(world, "eight-moving", *EIGHT, "train.steps=8", "engine.kind=fsdp", "--gpus", "1")
    assert "resuming from step 8" in train(world, "eight-moving", *EIGHT, "engine.zero_stage=3")
    still, moving, exact = (world / "runs" / run for run in ("eight-still", "eight-moving", "demo/with"))
    assert apart(moving, still, untrained) < apart(still, exact, untrained)


@pytest.mark.long
def test_a_teacher_in_int8_draws_teaches_and_is_scored(world: Path) -> None:
    """Every stage under `teacher.dtype: int8`. A cache of another dtype is accepted."""
    words = [*TINY, "teacher.dtype=int8", "train.steps=4", "paths.run=runs/int8", "paths.reference=runs/int8-teacher"]
    said = randcond(world, "run", "cache", "demo-with", *words, "cache.size=32", "paths.cache=runs/int8-cache").stdout
    assert "teacher in int8: " in said
    said = randcond(world, "run", "cache", "demo-with", *words).stdout
    assert "its latents were drawn with teacher.dtype=fp32, and are used as they are" in said
    part = shutil.copytree(world / "runs/demo/cache", world / "runs/part-of-a-cache")
    (part / "latents-00001.tar").unlink()
    refused = randcond(world, "run", "cache", "demo-with", *words, f"paths.cache={part}", code=2).stderr
    assert "teacher.dtype is 'fp32' there, 'int8' here" in refused
    said = randcond(world, "run", "train", "demo-with", *words).stdout
    assert "teacher in int8: " in said
    for ours, theirs in zip(metrics(world / "runs/int8"), metrics(world / "runs/demo/with"), strict=False):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=0.05) and ours != theirs
    for stage in ("eval", "report"):
        randcond(world, "run", stage, "demo-with", *words)
    refused = randcond(world, "run", "train", "demo-with", *words, "teacher.dtype=bf16", code=2).stderr
    assert "precision" in refused and "int8" in refused
