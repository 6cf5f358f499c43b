"""Tests of the deepspeed launcher over pdsh and ssh on two hosts: a killed rank, a cut link, restarts.

Run by `make test-hosts`.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import ADDRESSES, NAMES, TwoHosts
from tests.cluster.packages import HOSTS, need
from tests.cluster.world import ONE_HOST, STEPS, WORDS
from tests.support.interruptions import RANDCOND
from tests.support.patience import HANG
from tests.support.runs import difference, metrics

pytestmark = pytest.mark.hosts

TIMEOUTS = ["engine.heartbeat=10", "engine.timeout=60"]
BOUND = 90.0  # seconds from the fault until everything has ended on both hosts


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    need(HOSTS)
    with TwoHosts(tmp_path_factory.mktemp("hosts")) as two:
        yield two


class Launch:
    """A `randcond launch train` on the first host, watched until no process of it is left on either host."""

    def __init__(
        self, hosts: TwoHosts, folder: Path, run: str, *flags: str, environment: dict[str, str] | None = None
    ) -> None:
        self.hosts, self.folder, self.run = hosts, folder, folder / run
        words = ["launch", "train", "demo-with", *WORDS, *TIMEOUTS, f"paths.run={run}", "--hostfile", "hosts", *flags]
        self.log = folder / f"{time.monotonic()}.log"
        with self.log.open("wb") as out:
            command = [*hosts.on(NAMES[0]), *RANDCOND, *words]
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)

    def wait_for_checkpoint(self, step: int) -> None:
        deadline = time.monotonic() + HANG
        while not (self.run / "checkpoints" / f"step-{step:08d}").is_dir():
            assert self.process.poll() is None, f"ended with {self.process.returncode} too early\n{self.said()}"
            assert time.monotonic() < deadline, f"no checkpoint\n{self.said()}"
            time.sleep(0.1)

    def end(self, bound: float) -> float:
        """Waits until the command has ended and no process of it is left on either host. Returns the seconds."""
        began = time.monotonic()
        while self.process.poll() is None or any(map(self.hosts.processes, NAMES)):
            assert time.monotonic() - began < bound, f"not over after {bound} s\n{self.said()}"
            time.sleep(0.2)
        return time.monotonic() - began

    def said(self) -> str:
        return self.log.read_text().replace("\r", "\n")


def rank_on(hosts: TwoHosts, name: str) -> int:
    """Returns the process id of the rank on a host."""
    for pid in hosts.processes(name):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"randcond.train" in words and b"deepspeed.launcher.launch" not in words:
            return pid
    raise AssertionError(f"no rank on {name}")


def environment_of(process: int) -> list[str]:
    """Returns the environment that a process was started with, as NAME=value."""
    return [line for line in Path(f"/proc/{process}/environ").read_text().split("\0") if "=" in line]


def same_student(folder: Path, run: str) -> float:
    """Returns the largest difference from the student that two ranks of one host trained. No step may be missing."""
    assert [line["step"] for line in metrics(folder / run)] == list(range(2, STEPS + 1, 2))
    return difference(folder / run, folder / ONE_HOST)


def test_two_hosts_train_what_one_does(hosts: TwoHosts, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run folder's name has quotes and spaces, which pdsh would split. The ranks get the launcher's environment."""
    run = 'runs/it\'s "two" hosts'
    (folder / ".deepspeed_env").write_text('# over the shell\'s\nNCCL_DEBUG=INFO\nSECRET="a b"\n')
    shells = {**os.environ, "NCCL_DEBUG": "WARN", "TORCHINDUCTOR_FREEZING": "0", "AWS_SECRET_ACCESS_KEY": "x"}
    launch = Launch(hosts, folder, run, environment=shells)
    launch.wait_for_checkpoint(10)
    written = folder / run / "launch/environment"
    assert written.stat().st_mode & 0o777 == 0o600
    told = dict(line.split("=", 1) for line in environment_of(rank_on(hosts, NAMES[1])))
    launch.end(300)
    assert launch.process.returncode == 0, launch.said()
    assert not written.exists()
    assert (told["NCCL_DEBUG"], told["SECRET"], told["TORCHINDUCTOR_FREEZING"]) == ("INFO", "a b", "0")
    assert "AWS_SECRET_ACCESS_KEY" not in told
    (folder / ".deepspeed_env").unlink()
    assert same_student(folder, run) < 1e-5
    for rank in range(2):
        assert (folder / run / f"logs/train-rank-{rank:04d}.log").stat().st_size
    with capsys.disabled():
        print(f"\ntwo hosts: largest difference from one host {same_student(folder, run):.1e}")


@pytest.mark.parametrize("meeting", [ADDRESSES[0], NAMES[0]])
def test_hosts_meet_at_an_address_by_torchrun(hosts: TwoHosts, folder: Path, meeting: str) -> None:
    """The hosts' own names lead to 127.0.1.1, as on Debian. The second host knows the first one's name, too."""
    names = Path("/etc/netns", NAMES[1], "hosts")
    before = names.read_text()
    names.write_text(f"{before}{ADDRESSES[0]} {NAMES[0]}\n")
    run = f"runs/met-at-{meeting}"
    words = ["run", "train", "demo-with", *WORDS, f"paths.run={run}", "--launcher", "torchrun", "--gpus", "1"]
    words += ["--nodes", "2", "--rdzv", f"{meeting}:29511"]
    started = [
        subprocess.Popen(
            [*hosts.on(name), *RANDCOND, *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in NAMES
    ]
    said = [process.communicate(timeout=HANG)[0] for process in started]
    names.write_text(before)
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    assert same_student(folder, run) < 1e-5


@pytest.mark.parametrize("blow", ["kill", "cut"])
def test_a_lost_rank_ends_both_hosts_and_a_restart_finishes(
    hosts: TwoHosts, folder: Path, blow: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"runs/{blow}"

    def strike() -> None:
        if blow == "kill":
            os.kill(rank_on(hosts, NAMES[1]), signal.SIGKILL)
        else:
            hosts.cut()

    try:
        launch = Launch(hosts, folder, run)
        launch.wait_for_checkpoint(10)
        strike()
        seconds = launch.end(BOUND)
        assert launch.process.returncode != 0
        named = [line for line in launch.said().splitlines() if "error: training ended: rank 1 on host" in line]
        assert named and NAMES[1] in named[0], launch.said()
        with capsys.disabled():
            print(f"\n{blow}: both hosts over after {seconds:.0f} s, code {launch.process.returncode}; {named[0]}")
        hosts.mend()

        again = Launch(hosts, folder, run, "--max-restarts", "1")
        again.wait_for_checkpoint(30)
        strike()
        time.sleep(45 if blow == "cut" else 0)
        hosts.mend()
        again.end(400)
    finally:
        hosts.mend()
    assert again.process.returncode == 0, again.said()
    assert "restart 1 of 1" in again.said() and "resuming from step" in again.said()
    assert same_student(folder, run) < 1e-5
    with capsys.disabled():
        print(f"{blow}, restarted: largest difference from one host {same_student(folder, run):.1e}")


def test_a_host_that_does_not_answer_is_named_before_anything_starts(hosts: TwoHosts, folder: Path) -> None:
    (folder / "wrong").write_text(f"{NAMES[0]} slots=1\nhost-c slots=1\n")
    words = ["launch", "all", "demo-with", *WORDS, "--hostfile", "wrong", "paths.pool=runs/no-pool"]
    command = [*hosts.on(NAMES[0]), *RANDCOND, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 2
    assert "no answer to `ssh HOST true` from host-c (ssh: Could not resolve hostname host-c" in done.stderr
    assert not (folder / "runs/no-pool").exists()


def test_an_evaluation_that_is_asked_to_end_leaves_no_rank_on_either_host(hosts: TwoHosts, folder: Path) -> None:
    words = ["base: digits", "eval: {of: [teacher], size: 3000, batch: 2, steps: 4}", "paths: {reference: runs/ended}"]
    (folder / "long.yaml").write_text("\n".join([*words, "engine: {processes: 1}"]))
    command = [*hosts.on(NAMES[0]), *RANDCOND, "launch", "eval", "long.yaml", "--hostfile", "hosts"]
    log = folder / "ended.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
    deadline = time.monotonic() + HANG
    other = folder / "runs/ended/logs/eval-rank-0001.log"
    while not (other.is_file() and len(list((folder / "runs/ended").rglob("*.safetensors"))) > 4):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) == 75, log.read_text()
    while left := [pid for name in NAMES for pid in hosts.processes(name)]:
        assert time.monotonic() < deadline + 60, f"left: {left}\n{log.read_text()}"
        time.sleep(0.2)


def test_one_command_evaluates_on_both_hosts_and_gives_one_row(
    hosts: TwoHosts, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher draws 26 captions in chunks of 2 on two hosts, and the same on one host."""
    (folder / "system.yaml").write_text(
        "base: digits\n"
        "cache: {exclude: [three]}\n"
        "eval: {of: [teacher], size: 13, batch: 2, steps: 4}\n"
        "engine: {processes: 1}\n"
        "paths: {reference: runs/by-two}\n"
    )
    command = [*hosts.on(NAMES[0]), *RANDCOND, "launch", "eval", "system.yaml", "--hostfile", "hosts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = [*RANDCOND, "run", "eval", "system.yaml", "--gpus", "1", "paths.reference=runs/by-one"]
    assert subprocess.run(alone, cwd=folder, capture_output=True, timeout=HANG).returncode == 0
    for path in sorted((folder / "runs/by-one").glob("*.*")):
        if path.suffix in (".safetensors", ".json"):
            assert path.read_bytes() == (folder / "runs/by-two" / path.name).read_bytes(), path.name
    logs = [(folder / f"runs/by-two/logs/eval-rank-{rank:04d}.log").read_text() for rank in range(2)]
    shares = [int(re.search(rf"rank {rank} drew (\d+) of 13 batches", log)[1]) for rank, log in enumerate(logs)]
    assert sum(shares) == 13
    said = subprocess.run(
        [*RANDCOND, "report", "system.yaml", "paths.reference=runs/by-two"], cwd=folder, capture_output=True, text=True
    )
    with capsys.disabled():
        print(f"\nbatches by host: {shares}\n{said.stdout}")
    rows = [line for line in (folder / "runs/by-two/report.md").read_text().splitlines() if line.startswith("| system")]
    assert len(rows) == 1
