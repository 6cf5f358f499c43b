"""Tests of evaluation on several ranks: the same images and scores, also after kills and during training."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from randcond.launch.config.experiments import load_config
from randcond.launch.runtime.files import write_json
from randcond.launch.runtime.processes import RANKS_FROM
from randcond.train.evaluation import _best_remains
from randcond.train.setup import prepare_folder
from tests.support import warm
from tests.support.demo import TINY, randcond
from tests.support.interruptions import ranks, wait_for
from tests.support.runs import metrics, same_bits
from tests.support.web import free_port

WATCHED = ["train.eval_every=4", "train.eval_size=4", "train.sample_every=0"]
SYSTEM = """
base: digits
cache: {exclude: [three]}
eval: {of: [teacher], size: 13, batch: 4, steps: 4, save: files, cost: false}
paths: {reference: out}
"""


def system(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "system.yaml").write_text(SYSTEM)
    return folder


def held(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every artefact of an evaluation, by path."""
    out = folder / "out"
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".png", ".json")
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluates on one rank. Returns the folder."""
    folder = system(tmp_path_factory.mktemp("alone"))
    randcond(folder, "run", "eval", "system.yaml", "--gpus", "1")
    return folder


def test_two_ranks_make_the_same_bytes_and_scores(alone: Path, tmp_path: Path) -> None:
    """26 captions in chunks of 4: the ranks get uneven shares. Beside images and chunks: plan, scores, influence."""
    randcond(system(tmp_path), "run", "eval", "system.yaml", "--gpus", "2")
    assert len(held(tmp_path)) == 26 + 7 + 3 and held(tmp_path) == held(alone)


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "gpus"), [(13, 2), (13, 3), (2, 3)])
def test_a_prime_number_of_prompts_and_more_ranks_than_prompts(tmp_path: Path, prompts: int, gpus: int) -> None:
    words = ["cache.exclude=[]", f"eval.size={prompts}", "eval.batch=1"]
    randcond(system(tmp_path / "many"), "run", "eval", "system.yaml", "--gpus", str(gpus), *words)
    randcond(system(tmp_path / "one"), "run", "eval", "system.yaml", "--gpus", "1", *words)
    assert held(tmp_path / "many") == held(tmp_path / "one")
    scores = json.loads((tmp_path / "many/out/scores.json").read_text())
    assert scores["splits"]["all"]["images"] == prompts
    for kind in ("png", "txt"):  # an image and its caption
        assert len(list((tmp_path / "many/out/images").glob(f"*.{kind}"))) == prompts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_moment(alone: Path, tmp_path: Path, seed: int) -> None:
    folder, chance = system(tmp_path), random.Random(seed)
    command = [sys.executable, "-m", "randcond.launch.cli", "run", "eval", "system.yaml", "--gpus", "2"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made = chance.randrange(0, 6)
    wait_for(
        lambda: (folder / "out/plan.json").is_file() and len(list((folder / "out").glob("chunk-*"))) >= made, process
    )
    victims = ranks(process)
    for victim in victims if chance.random() < 0.5 else [chance.choice(victims)]:
        victim.send_signal(signal.SIGKILL)
    process.wait(90)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("chunk-*")}
    print(f"\nseed {seed}: killed after {made} chunks, {len(before)} there")
    randcond(folder, "run", "eval", "system.yaml", "--gpus", "2")
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("chunk-*")}
    assert {name: after[name] for name in before} == before  # no chunk is drawn twice
    assert held(folder) == held(alone)


def test_what_an_evaluation_would_lack_is_said_before_the_first_step(world: Path) -> None:
    words = [*TINY, "train.eval_every=4", "eval.metrics=[is]", "paths.run=runs/lacking"]
    done = randcond(world, "run", "train", "demo-with", *words, code=2)
    assert "eval.inception: no weights at" in done.stderr and "randcond fetch inception" in done.stderr
    assert not (world / "runs/lacking/checkpoints").exists()


def test_evaluation_during_training(world: Path) -> None:
    """Two ranks evaluate raw and EMA weights. The training ends with the same bits as without evaluation."""
    words = [*TINY, *WATCHED, "train.eval_every=6", "paths.run=runs/watched-twice"]
    randcond(world, "run", "train", "demo-with", *words)
    run = world / "runs/watched-twice"
    assert same_bits(run, world / "runs/demo/with")
    logged = scores_by_step(run, [6, 12])
    best = json.loads((run / "best.json").read_text())
    values = [line[f"eval/{kind}/all/digit_accuracy"] for line in logged.values() for kind in ("raw", "ema")]
    assert best["value"] == max(values) and (run / best["folder"] / "model_index.json").is_file()
    assert f"weights in fp32 after {best['step']} steps" in (run / best["folder"] / "README.md").read_text()
    assert any((run / "tensorboard").iterdir())
    write_json(run / "best.json", {**best, "step": 6, "weights": "raw"})  # a step before the last, whichever was best
    randcond(world, "run", "eval", "demo-with", *words, "eval.of=[student]")
    randcond(world, "report", "demo-with", *words, "eval.of=[student]")
    page = (run / "report.html").read_text()
    assert "digit right, all during training" in page and "demo-with (ema)" in page
    assert "best digit_accuracy during training, at step 6 (raw), scored with other settings" in page  # eval_size=4


BY_SRUN = {RANKS_FROM: "slurm", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    ("steps", "code", "more"),
    [
        (1, 0, {}),
        pytest.param(  # so that the job's script does not start its next step
            1, 75, {**BY_SRUN, "SLURM_STEP_TASKS_PER_NODE": "1"}, marks=pytest.mark.slow
        ),
        (2, 75, {}),
    ],
)
def test_asked_to_end_in_the_last_step_a_run_still_evaluates_it(
    world: Path, steps: int, code: int, more: dict[str, str]
) -> None:
    run = f"runs/last-of-{steps}-{len(more)}"
    words = [*TINY, *WATCHED, "train.eval_every=1", f"train.steps={steps}", f"paths.run={run}"]
    environment = {**more, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if more else {}
    command = warm.Command("tests.support.asked_to_end", ["demo-with", *words], world, environment)
    done = warm.run([command])[0]
    assert done.returncode == code, done.stderr
    assert (world / run / "train.json").is_file() == (steps == 1)
    assert (world / run / "evaluations").is_dir() == (steps == 1)


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_is_made_up_for(world: Path) -> None:
    """A training that was killed in an evaluation repeats it, and ends with the bits of one without evaluations."""
    words = [*TINY, *WATCHED, "paths.run=runs/watched"]
    randcond(world, "run", "train", "demo-with", *words)
    run = world / "runs/watched"
    assert same_bits(run, world / "runs/demo/with")
    logged = scores_by_step(run, [4, 8, 12])
    lines = [
        line for line in (run / "metrics.jsonl").read_text().splitlines() if not line.startswith('{"step": 8, "eval')
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run / "evaluations/step-000008/ema/scores.json").unlink()
    plan = run / "evaluations/step-000008/raw/plan.json"  # as if evaluated with another number of threads
    plan.write_text(plan.read_text().replace('"threads": 1', '"threads": 7'))
    for path in (run / "checkpoints").glob("step-*12"):
        path.rename(run / "later")
    (run / "train.json").unlink()
    randcond(world, "run", "train", "demo-with", *words)
    assert same_bits(run, world / "runs/demo/with")
    assert scores_by_step(run, [4, 8, 12]) == logged
    assert (run / "evaluations/step-000008/raw-before-0/plan.json").is_file()
    assert not (run / "evaluations/step-000008/ema-before-0").exists()


def scores_by_step(run: Path, steps: list[int]) -> dict[int, Any]:
    """Returns the lines with scores in metrics.jsonl, by step. Compares them with each evaluation's scores.json."""
    logged = {line["step"]: line for line in metrics(run) if "eval/ema/all/digit_accuracy" in line}
    assert list(logged) == steps
    for step, line in logged.items():
        for kind in ("raw", "ema"):
            scored = json.loads((run / f"evaluations/step-{step:06d}/{kind}/scores.json").read_text())
            assert scored["splits"]["unseen"]["images"] == 4 and scored["protocol"]["weights"] == kind
            assert line[f"eval/{kind}/unseen/frechet_judge"] == scored["splits"]["unseen"]["frechet_judge"]
    return logged


def test_a_best_step_of_other_weights_does_not_stay(tmp_path: Path) -> None:
    best = {"score": "fid", "how": {"seed": 1}, "value": 9.0, "step": 4, "weights": "ema"}
    later = {**best, "step": 6}
    for found, stays in (
        ({**later, "value": 9.5}, True),
        ({**later, "value": 9.0}, True),
        ({**later, "value": 8.5}, False),
        ({**later, "value": 9.5, "how": {"seed": 2}}, False),
        ({**later, "value": 9.5, "score": "kid"}, False),
        ({**best, "value": 9.5}, False),  # the same step again
    ):
        assert _best_remains(best, found, lower=True) == stays
    assert _best_remains(best, {**later, "value": 8.5}, lower=False)
    config = load_config("demo-with", [f"paths.run={tmp_path}"])
    write_json(tmp_path / "best.json", best)
    prepare_folder(config, 6)
    assert (tmp_path / "best.json").is_file()
    prepare_folder(config, 0)  # no checkpoint yet: the next run in this folder may be a different one
    assert not (tmp_path / "best.json").exists()
