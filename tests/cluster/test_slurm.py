"""Tests on a real Slurm cluster of two nodes: jobs are submitted, requeued and train the same student.

Run by `make test-slurm`.
"""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.packages import SLURM, need
from tests.cluster.slurm import NODES, Slurm
from tests.cluster.world import ONE_HOST, WORDS
from tests.support.demo import TINY
from tests.support.interruptions import RANDCOND
from tests.support.patience import HANG
from tests.support.runs import difference

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    need(SLURM)
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def launch(slurm: Slurm, folder: Path, run: str, *more: str) -> str:
    """Submits a training on two nodes. Returns the id of the job."""
    words = ["launch", "train", "demo-with", *WORDS, f"paths.run={run}", "--launcher", "slurm", "--nodes", "2", *more]
    said = slurm.sh(*RANDCOND, *words, cwd=folder)
    return said.rsplit("Submitted batch job ", 1)[1].strip()


def wait_for(slurm: Slurm, job: str, folder: Path, *states: str, seconds: float = HANG) -> str:
    """Waits until a job is in one of the states. Returns its state. A failure shows what the job printed."""
    deadline = time.monotonic() + seconds
    while (state := slurm.state(job)) not in states:
        outputs = [path.read_text(errors="replace") for path in folder.rglob(f"slurm-{job}*.out")]
        assert state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"), (state, outputs)
        assert time.monotonic() < deadline, (state, outputs)
        time.sleep(0.5)
    return state


def wait_for_file(path: Path, seconds: float = HANG) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.1)


def apart(folder: Path, run: str) -> float:
    """Returns the largest difference from the student that two ranks of one host trained."""
    return difference(folder / run, folder / ONE_HOST)


def output(folder: Path, run: str, job: str) -> str:
    return (folder / run / "launch" / f"slurm-{job}.out").read_text(errors="replace").replace("\r", "\n")


def test_two_nodes_train_what_one_machine_does(slurm: Slurm, folder: Path) -> None:
    job = launch(slurm, folder, "runs/two nodes")
    wait_for(slurm, job, folder, "COMPLETED")
    assert apart(folder, "runs/two nodes") < 1e-5
    assert len(list((folder / "runs/two nodes/logs").iterdir())) == len(NODES)


def test_a_requeued_job_goes_on(slurm: Slurm, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After `scontrol requeue`, as an administrator calls it, the ranks get SIGTERM and save. The job starts again."""
    job = launch(slurm, folder, "runs/requeued")
    wait_for_file(folder / "runs/requeued/checkpoints/step-00000010")
    slurm.sh("scontrol", "requeue", job)
    wait_for(slurm, job, folder, "COMPLETED")
    said = output(folder, "runs/requeued", job)
    assert "resuming from step" in said, said
    assert apart(folder, "runs/requeued") < 1e-5
    with capsys.disabled():
        lines = [line for line in said.splitlines() if "step" in line and line.startswith("training: ")]
        print(f"\nrequeued: {'; '.join(lines)}; largest difference {apart(folder, 'runs/requeued'):.1e}")


def test_the_notice_before_the_time_limit_saves_and_requeues(slurm: Slurm, folder: Path) -> None:
    """Slurm sends SIGUSR1 to the ranks before the time limit. The job requeues itself and resumes."""
    job = launch(slurm, folder, "runs/noticed")
    wait_for_file(folder / "runs/noticed/checkpoints/step-00000010")
    slurm.sh("scancel", "--signal=USR1", job)
    wait_for(slurm, job, folder, "COMPLETED")
    said = output(folder, "runs/noticed", job)
    assert "preempted, saved at step" in said and "resuming from step" in said
    assert apart(folder, "runs/noticed") < 1e-5


def test_a_table_becomes_a_job_array(slurm: Slurm, folder: Path) -> None:
    """Both arms of the demo train. Their cache is there already."""
    words = ["launch", "train", "demo", *TINY, "engine.processes=1", "train.sample_every=0", "--launcher", "slurm"]
    said = slurm.sh(*RANDCOND, *words, cwd=folder)
    job = said.rsplit("Submitted batch job ", 1)[1].strip()
    deadline = time.monotonic() + HANG
    while slurm.sh("squeue", "-h", "-j", job).strip():
        assert time.monotonic() < deadline
        time.sleep(1)
    assert (folder / "runs/demo/without/train.json").is_file()


def test_a_lost_rank_requeues_as_often_as_asked(slurm: Slurm, folder: Path) -> None:
    job = launch(slurm, folder, "runs/lost", "--max-restarts", "1")
    wait_for_file(folder / "runs/lost/checkpoints/step-00000010")
    subprocess.run(["pkill", "-9", "-n", "-f", "randcond.train runs/lost"], check=True)
    wait_for(slurm, job, folder, "COMPLETED")
    said = output(folder, "runs/lost", job)
    assert "error: training ended: rank" in said and "resuming from step" in said
    assert apart(folder, "runs/lost") < 1e-5


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_rank_killed_while_it_evaluates_was_not_asked_to_end(slurm: Slurm, folder: Path, restarts: int) -> None:
    """A rank that is killed, for example out of memory, reports nothing. srun then sends SIGTERM to the others."""
    run = f"runs/killed-{restarts}"
    words = ["base: digits", "eval: {of: [teacher], size: 200, batch: 2, steps: 4}", f"paths: {{reference: {run}}}"]
    (folder / "evaluated.yaml").write_text("\n".join([*words, "engine: {processes: 1}"]))
    flags = ["--launcher", "slurm", "--nodes", "2", "--max-restarts", str(restarts)]
    said = slurm.sh(*RANDCOND, "launch", "eval", "evaluated.yaml", *flags, cwd=folder)
    job = said.rsplit("Submitted batch job ", 1)[1].strip()
    deadline = time.monotonic() + HANG
    while not list((folder / run).rglob("*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    subprocess.run(["pkill", "-9", "-n", "-f", f"randcond.eval {run}"], check=True)
    wait_for(slurm, job, folder, "COMPLETED" if restarts else "FAILED")
    assert f"Restarts={restarts}" in slurm.sh("scontrol", "show", "job", job)
    assert (folder / run / "scores.json").is_file() == bool(restarts)


def test_a_mistake_of_one_rank_is_not_queued_again(slurm: Slurm, folder: Path) -> None:
    """srun sends SIGTERM to the other rank, which exits as preempted. The job's code is that of the failed rank."""
    log = folder / "runs/mistaken/logs/train-rank-0001.log"
    log.parent.mkdir(parents=True)
    log.symlink_to(folder / "nowhere/train-rank-0001.log")  # so rank 1 can't write its log
    job = launch(slurm, folder, "runs/mistaken", "--max-restarts", "3")
    wait_for(slurm, job, folder, "FAILED")
    found = slurm.sh("scontrol", "show", "job", job)
    assert "Restarts=0" in found and "ExitCode=2:0" in found, found
    assert "error: [Errno 2] No such file or directory" in output(folder, "runs/mistaken", job)
