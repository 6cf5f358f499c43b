"""Stages that are forked from a process which has imported their libraries."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from randcond.launch.cluster.commands import STAGES, Step, plan
from randcond.launch.cluster.fork_server import Request
from randcond.launch.cluster.forked import PRELOADED, ForkServer, fork_server
from randcond.launch.cluster.place import Place
from tests.support.interruptions import wait_until_gone

ROOT = Path(__file__).parents[3]
HERE = {**os.environ, "PYTHONPATH": str(ROOT), "LEFT": "1", "OTHER": "1"}


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer(["json"], ["csv", "no_such_library"], HERE)
    yield server
    server.close()


def stage(folder: Path, *codes: int, ranks: int = 1) -> Request:
    return Request("tests.support.rank_says", [str(folder), *map(str, codes)], ranks)


def said(folder: Path) -> list[dict[str, str]]:
    """Returns the environment of each rank that has started."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]"))]


def test_a_stage_gets_its_environment_and_its_code_comes_back(server: ForkServer, tmp_path: Path) -> None:
    environment = {name: value for name, value in HERE.items() if name != "LEFT"} | {"OTHER": "2", "NEW": "3"}
    for code in (7, 0):
        process = server.start(stage(tmp_path, code), environment)
        assert process is not None and process.wait() == code == process.poll()
        [rank] = said(tmp_path)
        assert rank["OTHER"] == "2" and rank["NEW"] == "3" and "LEFT" not in rank and "RANK" not in rank
        assert rank["pid"] == process.pid


def test_ranks_know_each_other(server: ForkServer, tmp_path: Path) -> None:
    process = server.start(replace(stage(tmp_path, 0, 0, ranks=2), port=1234), HERE)
    assert process is not None and process.wait() == 0
    for number, rank in enumerate(said(tmp_path)):
        assert (rank["RANK"], rank["LOCAL_RANK"], rank["WORLD_SIZE"]) == (str(number), str(number), "2")
        assert (rank["MASTER_ADDR"], rank["MASTER_PORT"], rank["LOCAL_SIZE"]) == ("127.0.0.1", "1234", "2")


@pytest.mark.parametrize(("code", "expected"), [(5, 5), (-signal.SIGKILL, 128 + signal.SIGKILL)])
def test_the_other_ranks_end_with_the_first_that_fails(
    code: int, expected: int, server: ForkServer, tmp_path: Path
) -> None:
    process = server.start(stage(tmp_path, code, ranks=2), HERE)
    assert process is not None and process.wait() == expected
    assert all(not psutil.pid_exists(int(rank["pid"])) for rank in said(tmp_path))


def test_a_stage_ends_with_its_server(tmp_path: Path) -> None:
    server = ForkServer(["json"], ["csv", "no_such_library"], HERE)
    process = server.start(stage(tmp_path, ranks=2), HERE)
    assert process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    while len(said(tmp_path)) < 2:
        time.sleep(0.02)
    ranks = [psutil.Process(int(rank["pid"])) for rank in said(tmp_path)]
    assert [each.cmdline()[1:3] for each in ranks] == [["-m", "tests.support.rank_says"]] * 2
    server.close()
    wait_until_gone([*ranks, psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else ranks)


def test_without_a_library_the_stage_is_started_by_itself() -> None:
    server = ForkServer(["no_such_library"], [], HERE)
    assert server.start(Request("platform", []), HERE) is None
    assert server.start(Request("platform", []), HERE) is None
    server.close()


def test_what_is_forked() -> None:
    """Every stage on this machine's CPU, unless a launcher or a host file was asked for."""
    steps = plan("all", "demo-with", [], Place(may_fork=True))
    assert [step.label.split()[0] for step in steps if step.forked] == ["check", *STAGES]
    assert all(step.forked.module in PRELOADED for step in steps if step.forked)
    for step in steps:
        assert step.forked and step.command[-len(step.forked.words) :] == step.forked.words
        assert step.forked.ranks == (2 if step.distributed else 1)
    assert not any(step.forked for step in plan("all", "demo-with", [], Place()))


def test_when_there_is_a_server() -> None:
    """Two stages or more, whose ranks have the same number of threads."""
    two = plan("all", "demo-with", [], Place(may_fork=True))[2:4]
    assert [step.distributed for step in two] == [True, True]
    with fork_server(two, {}) as forks:
        assert forks is not None
    others: list[list[Step]] = [two[:1], [two[0], replace(two[1], threads=2)]]
    for steps in others:
        with fork_server(steps, {}) as forks:
            assert forks is None
