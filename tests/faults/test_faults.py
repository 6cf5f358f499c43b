"""Tests of faults in a training: preemption, lost and hung ranks, full disks, NaN and infinite values."""

import errno
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.distributed import DistBackendError, DistNetworkError

from randcond.data.inputs.fetch import FetchError
from randcond.data.stream.stream import Positions, Stream, batches
from randcond.launch.cluster import hosts, supervise
from randcond.launch.cluster.commands import Step
from randcond.launch.errors import UserError
from randcond.launch.runtime.exit_codes import FAULT, LOST_RANK, PREEMPTED, USER_ERROR, exit_code
from randcond.train.faults.disk_space import check_folder
from randcond.train.faults.heartbeat import peer_is_lost
from randcond.train.watch.timing import trace_window
from tests.support import warm
from tests.support.demo import TINY, randcond
from tests.support.interruptions import ranks, wait_for
from tests.support.runs import metrics, same_bits, samples

STEPS = 30
WORDS = [*TINY, f"train.steps={STEPS}", "train.checkpoint_every=10", "train.sample_every=0", "train.log_samples=true"]


def struck(folder: Path, run: str, strike: Callable[[Any], None], *more: str) -> tuple[int, str]:
    """Trains on two ranks and calls `strike` after the first logged steps. Returns the exit code and the output."""
    words = ["launch", "train", "demo-with", *WORDS, f"paths.run={run}", *more]
    process = warm.Process(warm.Command("randcond.launch.cli", words, folder))
    metrics = folder / run / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 1, process)
    strike(process)
    said = "".join(process.communicate())
    return process.wait(), said


def train(folder: Path, run: str, *more: str) -> str:
    """Trains without a fault. Returns what the command printed."""
    return randcond(folder, "run", "train", "demo-with", *WORDS, f"paths.run={run}", *more).stdout


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """Trains the undisturbed run, with which the others are compared. Returns the folder."""
    train(world, "runs/unhurt")
    return world


def assert_same(folder: Path, run: str) -> None:
    """Asserts that a run ended like the undisturbed one: same weights bit by bit, same samples at every step."""
    assert same_bits(folder / run, folder / "runs/unhurt")
    seen = samples(folder / run)
    assert seen == samples(folder / "runs/unhurt")
    assert sorted(seen) == list(range(1, STEPS + 1)) and all(len(rows) == 16 for rows in seen.values())


def asks(process: Any) -> None:
    process.send_signal(signal.SIGTERM)


def asks_a_rank(process: Any) -> None:
    ranks(process)[1].send_signal(signal.SIGUSR1)


def asks_all(process: Any) -> None:
    """Sends SIGTERM to every process, launcher and loaders included, as when a container is stopped."""
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.send_signal(signal.SIGTERM)


def assert_saved_and_continues(whole: Path, run: str, code: int, said: str, *more: str) -> None:
    """Asserts that a run that was asked to end saved its current step, and that it continues to the same student."""
    assert code == 75, said
    step = int(said.split("preempted, saved at step ")[1].split(";")[0])
    assert 0 < step < STEPS
    newest = sorted((whole / run / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{step:08d}"
    assert not list((whole / run).glob(".stop*"))
    assert f"resuming from step {step}" in train(whole, run, *more)
    assert_same(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "more"),
    [
        (asks, []),
        (asks_a_rank, []),
        (asks_all, ["train.workers=1"]),
        (asks, ["--launcher", "torchrun"]),
        (asks_all, ["--launcher", "deepspeed", "train.workers=1"]),
    ],
)
def test_asked_to_end_it_saves_that_step_and_goes_on(
    whole: Path, strike: Callable[[Any], None], more: list[str]
) -> None:
    run = f"runs/asked-{strike.__name__}-{len(more)}"
    code, said = struck(whole, run, strike, *more)
    assert_saved_and_continues(whole, run, code, said, *more)


def kills_a_rank(process: Any) -> None:
    ranks(process)[1].kill()


def kills_the_first(process: Any) -> None:
    ranks(process)[0].kill()


def stops_a_rank(process: Any) -> None:
    ranks(process)[1].suspend()


RESTART = ["--max-restarts", "1", "engine.heartbeat=6"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "named", "more"),
    [
        (kills_a_rank, "rank 1 on host", []),
        (kills_the_first, "rank 0 on host", []),
        (stops_a_rank, "rank 1 on host", []),
        (kills_a_rank, "rank 1 on host", ["--launcher", "deepspeed"]),
    ],
)
def test_a_lost_rank_is_named_and_the_run_starts_again(
    whole: Path, strike: Callable[[Any], None], named: str, more: list[str]
) -> None:
    run = f"runs/{strike.__name__}-{len(more)}"
    code, said = struck(whole, run, strike, *RESTART, *more)
    assert code == 0, said
    assert f"error: training ended: {named}" in said and "restart 1 of 1" in said
    assert_same(whole, run)
    ours, theirs = (metrics(whole / each) for each in (run, "runs/unhurt"))
    assert [(a["step"], a["loss/total"]) for a in ours] == [(a["step"], a["loss/total"]) for a in theirs]


@pytest.mark.slow  # each of the two is in `make test` by itself
def test_a_lost_rank_and_then_a_preemption(whole: Path) -> None:
    """The run starts again after rank 1 is killed. Then it is asked to end, and continues by another command."""
    run = "runs/lost-and-asked"

    def strike(process: Any) -> None:
        lost, log = set(ranks(process)), whole / run / "metrics.jsonl"
        kills_a_rank(process)
        wait_for(lambda: len(set(ranks(process)) - lost) == 2, process)
        began = time.time()
        wait_for(lambda: log.stat().st_mtime > began and len(log.read_text().splitlines()) > 1, process)
        asks(process)

    code, said = struck(whole, run, strike, *RESTART)
    assert "error: training ended: rank 1 on host" in said and "restart 1 of 1" in said
    assert_saved_and_continues(whole, run, code, said)


def test_no_space_and_no_right_to_write_are_errors_before_the_first_step(tmp_path: Path) -> None:
    check_folder(tmp_path, parameters=1000, keep=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"paths.run: .* is not writable \(Not a directory\)"):
        check_folder(tmp_path / "file" / "run", parameters=1000, keep=2)
    disk = shutil.disk_usage(tmp_path)
    with pytest.raises(UserError, match=r"GB free, but this run needs .* 2 kept checkpoints and one being written"):
        check_folder(tmp_path, parameters=disk.free // 16, keep=2)
    with pytest.raises(UserError, match=r"the exported students, the U-Nets of 40 evaluations. Free disk space"):
        check_folder(tmp_path, parameters=disk.free // 110, keep=1, evaluations=40)  # 2 * 16 + 8 + 40 * 2 + 4 bytes
    check_folder(tmp_path, parameters=disk.free // 110, keep=1, evaluations=20)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_disk_that_fills_up_ends_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """On a real file system of 4 MB, the writer's error is raised at the next step."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root, and no chroot")
    code = (
        "import sys, torch; from pathlib import Path; from randcond.train.state import checkpoint\n"
        "from randcond.train.engine import STATE_KINDS\n"
        "folder = Path(sys.argv[1]); writer = checkpoint.Writer(folder, 0, 1, 3)\n"
        "state = {kind: {'a@0': torch.zeros(100_000)} for kind in STATE_KINDS}\n"
        "for step in (1, 2, 3):\n"
        "    writer.save(step, state, {'a': (100_000,)}, {'skipped': 0})\n"
        "    writer.wait()\n"
    )
    inside = f'mount -t tmpfs -o size=4m small "{tmp_path}" && "{sys.executable}" -c "$1" "{tmp_path}"; ls "{tmp_path}"'
    done = subprocess.run(["unshare", "--mount", "sh", "-c", inside, "sh", code], capture_output=True, text=True)
    assert "No space left on device" in done.stderr
    assert done.stdout.split() == ["step-00000001", "step-00000002"]


SKIP = """
import sys, torch
from randcond.launch.config.experiments import load_config; from randcond.launch.config.paths import resolve_path
from randcond.model_zoo.denoiser.forward import cast
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step
from randcond.train.engine import build_engine
config = load_config("demo-with", ["train.skip_nonfinite=1", "train.global_batch=2", *sys.argv[1:]])
teacher = Teacher.load(resolve_path(config.teacher.path), "fp32")
module = build_step(config, teacher)[0]
exact = {name: p.detach().clone() for name, p in module.named_parameters()}
engine = build_engine(config, module)
began = engine.gather("weights")
assert all(torch.equal(began[name], exact[name]) for name in exact), "the masters are not what was initialised"
def step(factor):
    noised = torch.randn(2, teacher.denoiser.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = teacher.encode(teacher.tokenizers(["a red two"] * 2), torch.zeros(2, dtype=torch.bool))
    condition = cast(teacher.family, condition, engine.dtype)
    prediction, _ = engine.forward(noised.to(engine.dtype), torch.tensor([1, 500]), condition)
    engine.backward(prediction.float().square().mean() * factor)
    return float(engine.step(1e-3, 0.9))
def state():
    return {kind + key: run for kind, runs in engine.local_state().items() for key, run in runs.items()}
state()  # there before the first step too, which might be left out
step(1.0)
before = state()
norm = step(float("inf"))
assert not torch.isfinite(torch.tensor(norm)) and engine.skipped == 1, (norm, engine.skipped)
assert all(torch.equal(run, before[key]) for key, run in state().items()), "a skipped step changed something"
assert 0 < step(1.0) < float("inf") and engine.skipped == 1
assert any(not torch.equal(run, before[key]) for key, run in state().items())
print("skipped one")
"""


HEARTBEAT = """
import sys, time, types
import torch.distributed as dist
from randcond.train.engine.base import Engine
from randcond.train.faults.heartbeat import Heartbeat
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
engine = Engine.__new__(Engine)
engine.rank, engine.ranks, engine._control = rank, 2, None
with Heartbeat(engine, silence=1.0, stall=60.0) as heartbeat:
    heartbeat.report(1, "between steps")
    time.sleep(0 if rank else 4)  # the first rank still writes when the other has done
dist.destroy_process_group()  # as the engine does; left alone, gloo's threads may outlive what they use and abort
print("both are done")
"""


def test_a_rank_that_still_saves_is_waited_for(tmp_path: Path) -> None:
    """Rank 1 is done with its share long before rank 0, and keeps sending heartbeats."""
    here = {"MASTER_ADDR": "127.0.0.1"}
    words = [[HEARTBEAT, str(rank), f"file://{tmp_path}/meet"] for rank in range(2)]
    both = warm.run([warm.Command("-c", each, tmp_path, here) for each in words])
    assert all(done.returncode == 0 and done.stdout.endswith("both are done\n") for done in both), both


def answering(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts an `ssh` that runs the script into PATH."""
    folder.mkdir()
    (folder / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_host_whose_shell_hangs_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path / "bin", monkeypatch, "exec sleep 60")
    monkeypatch.setattr(hosts, "SSH_TIMEOUT", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer to `ssh HOST true` from node1"):
        hosts.wait_for_hosts(["node1"], patience=0)
    assert time.monotonic() - began < 30


def test_a_host_that_stays_away_after_it_was_lost_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(tmp_path / "bin", monkeypatch, f"test ! -e {tmp_path}/gone")
    monkeypatch.setattr(supervise, "PATIENCE", 0.0)
    command = [sys.executable, "-c", f"open('{tmp_path}/gone', 'w'); raise SystemExit({LOST_RANK})"]
    with pytest.raises(SystemExit) as ended:
        supervise.run_steps([Step("train", command, distributed=True, hosts=["node1"])], max_restarts=3)
    assert ended.value.code == LOST_RANK
    said = capsys.readouterr()
    assert "restart 1 of 3" in said.out and "restart 2" not in said.out
    assert "no answer to `ssh HOST true` from node1" in said.err


def test_asked_to_end_as_one_step_ends_the_next_is_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stop file that a killed command with the same process id left is ignored."""
    left = tmp_path / f".stop.{platform.node()}.{os.getpid()}"
    left.touch()
    asks = (
        "import os, signal, time; from pathlib import Path; stop = Path(os.environ['RANDCOND_STOP_FILE']);"
        "assert not stop.exists(); os.kill(os.getppid(), signal.SIGTERM);"
        "[time.sleep(0.1) for _ in range(100) if not stop.exists()]"
    )
    steps = [Step("first", [sys.executable, "-c", asks], folder=tmp_path), Step("second", ["false"])]
    with pytest.raises(SystemExit) as ended:
        supervise.run_steps(steps)
    assert ended.value.code == PREEMPTED
    said = capsys.readouterr().out
    assert "preempted: saving" in said and "[2/2]" not in said
    supervise.run_steps(steps[:1])  # no step is left to begin: it ends normally


def test_a_verdict_ends_the_process_though_the_log_has_no_room() -> None:
    program = (
        "import os; from randcond.train.faults.heartbeat import end_process;"
        "full = os.open('/dev/full', os.O_WRONLY); os.dup2(full, 1); os.dup2(full, 2);"
        "end_process('rank 1 died', {console})"
    )
    for console in (False, True):
        assert warm.run_code(program.format(console=console)).returncode == LOST_RANK


def test_an_error_reaches_the_console_though_the_log_has_no_room() -> None:
    program = (
        "from pathlib import Path; from randcond.launch.runtime.logs import log, log_to;"
        "log_to(Path('/dev/full'), rank=1); log.error('error: no space'); print('more')"
    )
    assert warm.run_code(program).stderr == "error: no space\n"


def test_a_lost_peer_is_told_by_class_where_there_is_one() -> None:
    assert peer_is_lost(DistNetworkError("whatever")) and peer_is_lost(DistBackendError("whatever"))
    assert peer_is_lost(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
    assert not peer_is_lost(UserError("a file: Timed out")) and not peer_is_lost(FetchError("http://x: timed out"))
    assert not peer_is_lost(RuntimeError("CUDA out of memory"))


def test_what_passes_is_no_mistake() -> None:
    """A full disk stays full. A stale file handle or a lost connection is temporary: the same command may continue."""
    for error in (UserError(), OSError(errno.ENOSPC, "full"), PermissionError(errno.EACCES, "denied")):
        assert exit_code(error) == USER_ERROR
    for passing in (OSError(errno.ESTALE, "stale"), ConnectionRefusedError(), TimeoutError()):
        assert exit_code(passing) == LOST_RANK
    for bug in (ValueError(), RuntimeError(), OSError("of a library")):
        assert exit_code(bug) == FAULT


ERRORS = {
    OSError(errno.ESTALE, "stale", "a shard"): LOST_RANK,
    OSError(errno.ENOSPC, "full", "a shard"): USER_ERROR,
    UserError("a damaged shard"): USER_ERROR,
    ValueError("a bug"): FAULT,
    UnicodeDecodeError("utf-8", b"x", 0, 1, "needs five arguments"): FAULT,
}


def test_an_error_in_a_loader_process_is_what_it_was() -> None:
    """It keeps its class, number and message. A note says where it was raised."""
    loader = batches(Unreadable(list(ERRORS)), Positions(0, len(ERRORS), 2, 2, 0, 1), workers=1)
    for error, code in ERRORS.items():
        with pytest.raises(type(error)) as raised:
            next(loader)
        assert exit_code(raised.value) == code and str(raised.value) == str(error)
        assert "in sample" in raised.value.__notes__[0]


class Unreadable(Stream):
    """A stream that raises an error at every sample: one after the other, the same in both samples of a batch."""

    def __init__(self, errors: list[Exception]) -> None:
        self.errors = errors

    def __reduce__(self) -> Any:
        return Unreadable, (self.errors,)

    def read_ahead(self, positions: list[int]) -> None:
        """Reads nothing."""

    def sample(self, position: int) -> dict[str, Any]:
        raise self.errors[position // 2]


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        pytest.param("engine.zero_stage=1", "bf16", marks=pytest.mark.slow),
        pytest.param("engine.zero_stage=1", "fp32", marks=pytest.mark.slow),  # DeepSpeed uses another optimizer
        pytest.param("engine.zero_stage=2", "bf16", marks=pytest.mark.slow),
        pytest.param("engine.zero_stage=3", "bf16", marks=pytest.mark.slow),
        pytest.param("engine.kind=fsdp", "bf16", marks=pytest.mark.slow),
        ("engine.kind=fsdp student.rule=channel-tiny", "fp32"),  # has projectors, which get no gradient here
    ],
)
def test_masters_are_exact_and_a_skipped_step_leaves_everything_as_it_was(
    engine: str, precision: str, tmp_path: Path
) -> None:
    words = [*engine.split(), f"engine.precision={precision}"]
    done = warm.run_code(SKIP, *words, folder=tmp_path)
    assert "skipped one" in done.stdout, done.stderr


def test_a_profile_is_written_for_its_window(tmp_path: Path) -> None:
    with trace_window([3, 4], first=0, folder=tmp_path, rank=0) as after_step:
        for _ in range(5):
            torch.ones(4, 4) @ torch.ones(4, 4)
            after_step()
    assert (tmp_path / "profile/rank-0000.json.gz").stat().st_size > 500
    with trace_window([3, 4], first=4, folder=tmp_path / "none", rank=0) as after_step:
        after_step()
    assert not (tmp_path / "none").exists()
