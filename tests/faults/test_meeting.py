"""Where ranks wait for each other, they say within seconds what for. Ranks of another job are not waited for."""

import time
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.demo import TINY, on_ranks
from tests.support.patience import HANG

WORDS = ["demo-with", *TINY, "train.steps=2", "train.sample_every=0"]
ANOTHER_JOB = {
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "9",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANDCOND_RANKS": "slurm",
}


def wait_for_text(process: warm.Process, text: str) -> str:
    """Waits until a process has said a text, on either output. Returns the line."""
    deadline = time.monotonic() + HANG
    while True:
        said = "".join(process.output())
        if text in said:
            return next(line for line in said.splitlines() if text in line)
        assert process.poll() is None, f"ended with {process.returncode}: {said}"
        assert time.monotonic() < deadline, f"not said: {text}\n{said}"
        time.sleep(0.1)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["train", *WORDS, "paths.run=runs/no-rank", "--gpus", "1"], "runs/no-rank/student/model_index.json"),
        # Only rank 0 would write it.
        pytest.param(["report", "demo", *TINY], "runs/demo/report.json", marks=pytest.mark.slow),
    ],
    ids=["train", "report"],
)
def test_one_process_waits_for_no_rank_of_another_job(words: list[str], written: str, world: Path) -> None:
    """The shell of the command runs within a job."""
    began = time.time()
    done = warm.run([warm.Command("randcond.launch.cli", ["run", *words], world, ANOTHER_JOB)])[0]
    assert done.returncode == 0, done.stderr
    assert (world / written).stat().st_mtime > began


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["zero-1", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_rank_0_says_who_is_missing(world: Path, kind: str) -> None:
    engine = ["engine.kind=fsdp"] if kind == "fsdp" else []
    first, second = on_ranks(2, "randcond.train", [*WORDS, *engine, f"paths.run=runs/late-{kind}"], world)
    place = f"127.0.0.1:{first.environment['MASTER_PORT']}"
    rank_0 = warm.Process(first)
    line = wait_for_text(rank_0, "waiting at ")
    assert line.startswith(f"waiting at {place} for 1 of 2 ranks: 1. If this run has one process, unset RANK and W")
    rank_1 = warm.Process(second)
    assert rank_0.wait() == rank_1.wait() == 0, rank_1.communicate()
    assert (world / f"runs/late-{kind}/student/model_index.json").is_file()


@pytest.mark.heavy
def test_a_rank_says_that_rank_0_is_missing(world: Path) -> None:
    _, second = on_ranks(2, "randcond.train", [*WORDS, "paths.run=runs/lonely"], world)
    rank_1 = warm.Process(second)
    line = wait_for_text(rank_1, "waiting for rank 0")
    place = f"127.0.0.1:{second.environment['MASTER_PORT']}"
    assert line.startswith(f"waiting for rank 0 of 2 at {place}, which does not answer. If this run has one process")
    rank_1.kill()
    rank_1.wait()
