"""Ranks that get a signal: one that stood still blames itself, and Ctrl-C is no failure."""

import os
import signal
import time
from pathlib import Path

from randcond.launch.runtime.exit_codes import INTERRUPTED, LOST_RANK, USER_ERROR
from randcond.train.faults.standstill import Standstill
from tests.support import warm
from tests.support.interruptions import wait_for

TRAINING = """
import sys, time
from pathlib import Path
import torch.distributed as dist
from randcond.launch.runtime.logs import start_console
from randcond.train.engine.base import Engine
from randcond.train.faults.heartbeat import Heartbeat
start_console()
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
engine = Engine.__new__(Engine)
engine.rank, engine.ranks, engine._control = rank, 2, None
with Heartbeat(engine, silence=3.0, stall=300.0) as heartbeat:
    Path(f"begun-{rank}").touch()
    while not Path("end").exists():
        heartbeat.report(1, "between steps")
        time.sleep(0.05)
dist.destroy_process_group()
print("both are done")
"""


def begun(folder: Path) -> list[warm.Process]:
    """Starts two ranks and waits until both run."""
    words = [[TRAINING, str(rank), f"file://{folder}/meet"] for rank in range(2)]
    ranks = [warm.Process(warm.Command("-c", each, folder, {"MASTER_ADDR": "127.0.0.1"})) for each in words]
    for number, rank in enumerate(ranks):
        wait_for((folder / f"begun-{number}").exists, rank)
    return ranks


def stop(process: warm.Process, number: int) -> None:
    os.kill(process.pid, number)


def assert_the_sleeper_blames_itself(folder: Path, sleeper: int) -> None:
    ranks = begun(folder)
    other = 1 - sleeper
    stop(ranks[sleeper], signal.SIGSTOP)
    try:
        assert ranks[other].wait() == LOST_RANK
    finally:
        stop(ranks[sleeper], signal.SIGCONT)
    assert ranks[sleeper].wait() == LOST_RANK
    said, awake = ("".join(ranks[number].communicate()) for number in (sleeper, other))
    assert f"rank {sleeper} on host" in awake and "has sent no heartbeat" in awake
    assert f"rank {other} on host" not in said and "died" not in said, said
    assert f"rank {sleeper} stood still for" in said


def test_the_first_rank_was_stopped(tmp_path: Path) -> None:
    assert_the_sleeper_blames_itself(tmp_path, 0)


def test_another_rank_was_stopped(tmp_path: Path) -> None:
    assert_the_sleeper_blames_itself(tmp_path, 1)


def test_a_job_that_was_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    """Ctrl-Z and fg, or a paused container: every rank was silent for longer than engine.heartbeat, none is lost."""
    ranks = begun(tmp_path)
    for rank in ranks:
        stop(rank, signal.SIGSTOP)
    time.sleep(7)
    for rank in ranks:
        stop(rank, signal.SIGCONT)
    time.sleep(1)
    (tmp_path / "end").touch()
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.communicate() for rank in ranks]
    outputs = ["".join(rank.communicate()) for rank in ranks]
    assert all("both are done" in said and "stood still for" in said for said in outputs), outputs


def test_a_round_in_time_is_no_standstill() -> None:
    clock = Standstill(limit=60.0)
    assert clock.tick() == 0.0 and not clock.is_recent(3600.0)
    clock.limit = 0.0
    assert clock.tick() > 0.0 and clock.is_recent(3600.0) and not clock.is_recent(0.0)


def test_ctrl_c_is_no_failure(tmp_path: Path) -> None:
    """It reaches one rank a little before the other. None of them reports an error."""
    ranks = begun(tmp_path)
    stop(ranks[1], signal.SIGINT)
    assert ranks[0].wait() == INTERRUPTED
    assert "error" not in "".join(ranks[0].communicate())


def test_a_users_mistake_is_not_to_be_repeated() -> None:
    program = (
        "from randcond.launch.runtime.logs import start_console; start_console();"
        "from randcond.train.faults.heartbeat import end_process; end_process('rank 1 failed: a key.', True, {code})"
    )
    said = {code: warm.run_code(program.format(code=code)).stderr for code in (USER_ERROR, LOST_RANK)}
    assert said[USER_ERROR].splitlines()[0] == "error: training ended: rank 1 failed: a key."
    assert "key. The last checkpoint is intact; run the same command" in said[LOST_RANK]
