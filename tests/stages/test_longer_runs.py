"""A run that goes on: more steps than it was finished with, another learning rate, the student of an earlier run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import PACKAGE
from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step
from randcond.train.checks import check_training
from randcond.train.schedule import learning_rate
from tests.support import warm
from tests.support.demo import TINY, randcond
from tests.support.runs import metrics, same_bits, weights

WORDS = [*TINY, "train.sample_every=0", "train.log_every=1", "train.steps=4"]


def train(world: Path, run: str, *words: str, code: int = 0) -> str:
    """Trains on one rank. Returns what was printed."""
    done = randcond(world, "run", "train", "demo-with", *WORDS, *words, f"paths.run={run}", "--gpus", "1", code=code)
    return done.stdout + done.stderr


def test_a_finished_run_goes_on_to_more_steps(world: Path) -> None:
    """It ends with the bits of a run that had the larger number from the start, and its student is evaluated anew."""
    run = world / "runs/raised"
    said = train(world, "runs/raised")
    assert "the student is at" in said and not {"Gloo", "DeepSpeed", "built", "WARNING"} & set(re.findall(r"\w+", said))
    assert "Gloo" in (run / "logs/train-rank-0000.log").read_text()  # what libraries say is in a file
    words = [
        *WORDS,
        "paths.run=runs/raised",
        "eval.of=[student]",
        "eval.steps=1",
        "paths.reference=runs/raised/teacher",
    ]
    randcond(world, "run", "eval", "demo-with", *words, "--gpus", "1")
    before = json.loads((run / "eval-ema/scores.json").read_text())["protocol"]["network"]
    randcond(world, "run", "report", "demo-with", *words)
    said = train(world, "runs/raised", "train.steps=6", "train.sample_every=4", "eval.steps=1")
    # As after a kill between the checkpoint of step 4 and its sample grid.
    assert [path.name for path in (run / "grids").iterdir()] == ["step-00000004.png"]
    assert "resuming from step 4" in said and "kept in runs/raised/eval-ema-before-0" in said
    train(world, "runs/whole", "train.steps=6")
    assert same_bits(run, world / "runs/whole")
    assert json.loads((run / "train.json").read_text())["steps"] == 6
    assert "after 6 steps" in (run / "student_ema/README.md").read_text()
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert not (run / "eval-ema").exists()
    reports = {"report.md", "report.html", "report.json", "contact_sheet.png"}
    assert not any((run / name).exists() for name in reports)
    assert reports <= {path.name for path in (run / "eval-ema-before-0").iterdir()}
    kept = json.loads((run / "eval-ema-before-0/scores.json").read_text())["protocol"]["network"]
    assert kept == before != folder_fingerprint(run / "student_ema")

    said = train(world, "runs/raised", "train.schedule=cosine", "train.steps=8", code=2)
    assert "train.schedule is 'constant' there, 'cosine' here. With" in said and "train.steps is" not in said
    said = train(world, "runs/raised", "train.steps=5", code=2)
    assert "train.steps: 5 is too small, because the run at runs/raised is finished with 6 steps" in said
    shutil.rmtree(run / "checkpoints")
    said = train(world, "runs/raised", "train.steps=8", code=2)
    assert "finished, and none of its checkpoints is left" in said and "student.init=runs/raised/student_ema" in said
    assert (run / "train.json").is_file() and same_bits(run, world / "runs/whole")


@pytest.mark.parametrize("schedule", ["cosine", pytest.param("wsd", marks=pytest.mark.slow)])
def test_a_schedule_is_exact_over_a_resume(world: Path, schedule: str) -> None:
    words = [f"train.schedule={schedule}", *(["train.decay=0.5"] if schedule == "wsd" else ["train.min_lr=0.1"])]
    train(world, f"runs/{schedule}", *words)
    cut = [*WORDS, *words, f"paths.run=runs/{schedule}-cut"]
    done = warm.run([warm.Command("tests.support.asked_to_end", ["demo-with", *cut], world)])[0]
    assert done.returncode == 75, done.stderr
    assert "resuming from step 1" in train(world, f"runs/{schedule}-cut", *words)
    assert same_bits(world / f"runs/{schedule}", world / f"runs/{schedule}-cut")
    settings = load_config("demo-with", cut).train
    expected = [learning_rate(settings, step) for step in range(1, 5)]
    assert [line["lr"] for line in metrics(world / f"runs/{schedule}-cut")] == expected and expected[2:] != [1e-3] * 2
    if schedule == "cosine":
        said = train(world, "runs/cosine", *words, "train.steps=6", code=2)
        assert "train.steps is 4 there, 6 here. With train.schedule=cosine, train.steps decides the learning" in said
        assert "student.init=runs/cosine/student_ema" in said
        said = train(world, "runs/cosine", "train.schedule=constant", "train.steps=6", code=2)
        assert "train.schedule is 'cosine' there, 'constant' here" in said and "train.steps is" not in said
    else:
        assert "resuming from step 4" in train(world, "runs/wsd", *words, "train.steps=5")


@pytest.fixture(scope="module")
def earlier(world: Path) -> Path:
    return world / "runs/demo/with/student_ema"


def test_a_run_starts_from_an_earlier_student(world: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another learning rate and another pool. The earlier student may move; its content decides."""
    monkeypatch.chdir(world)
    config = load_config("demo-with", [*WORDS, f"student.init={earlier}"])
    module, _ = build_step(config, Teacher.load(PACKAGE / "data/digits/models/teacher", "fp32"))
    stored = weights(world / "runs/demo/with", "student_ema")
    assert all(torch.equal(value, stored[name]) for name, value in module.network.state_dict().items())
    words = ["train.lr=1e-4", "pool.min_length=5", "paths.pool=runs/other-pool"]
    randcond(world, "run", "pool", "demo-with", *WORDS, *words)
    train(world, "runs/second", f"student.init={earlier}", *words)
    moved = shutil.copytree(earlier, world / "moved")
    assert "resuming from step 4" in train(world, "runs/second", f"student.init={moved}", *words, "train.steps=5")
    card = (world / "runs/second/student/README.md").read_text()
    assert f"Initialisation: the student {world.name}/moved." in card
    assert str(world) not in card


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["student.init=./nothing"], "no exported student at nothing; expected a folder like RUN/student"),
        (["student.init={}", "student.rule=block-tiny"], "student.init: .*: the architecture differs"),
        (["student.init={}", "student.rule=channel-tiny"], "student.init: .*: the architecture differs"),
        (
            ["student.init={}", "student.rule=slim-base"],
            "_class_name is UNet2DConditionModel, but student.rule gives Slim",
        ),
        (["student.start_from={}", "student.rule=block-tiny"], "the architecture differs"),
    ],
)
def test_an_earlier_student_that_does_not_fit_is_refused_before_any_work(
    words: list[str], said: str, earlier: Path
) -> None:
    with pytest.raises(UserError, match=said):
        check_training(load_config("demo-with", [word.format(earlier) for word in words]), 2)


def test_two_earlier_students_are_a_contradiction(earlier: Path) -> None:
    with pytest.raises(UserError, match=r"student\.start_from: names an earlier student, and so does student\.init"):
        load_config("demo-with", [f"student.init={earlier}", f"student.start_from={earlier}"])
    check_training(load_config("demo-with", [f"student.start_from={earlier}"]), 2)  # as older versions have it
