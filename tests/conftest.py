"""Shared by all tests: the fixture `world`, where the tiny demo has run, and the order and marks of tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from randcond.launch.runtime import this_command
from randcond.launch.runtime.logs import start_console
from tests.support.demo import TINY, randcond
from tests.support.order import spread

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core a process; torch reads it when it is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # test processes share the cores: threads must not busy-wait


UNIT = Path(__file__).parent / "unit"
QUICK = {"test_older_artefacts.py"}  # also quick: a cache, a pool, an evaluation and a training, end to end


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder where the tiny demo has run: every stage of both arms, on two ranks.

    It runs once for all processes of pytest-xdist. Each process has its own copy of the folder.
    """
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny-demo"
    with FileLock(made.with_suffix(".lock")):
        if not made.is_dir():
            unfinished = tmp_path_factory.mktemp("tiny-demo")
            randcond(unfinished, "run", "all", "demo", *TINY, "train.sample_every=12")
            unfinished.rename(made)
    folder = tmp_path_factory.mktemp("world")
    return Path(shutil.copytree(made, folder, dirs_exist_ok=True))


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    """Fails a test that leaves another default dtype: later tests of the process would compute in it."""
    import torch

    yield
    found = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert found == torch.float32


@pytest.fixture(autouse=True)
def _no_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that runs in this process notes its experiment, which later tests' messages must not name."""
    monkeypatch.setattr(this_command, "_experiment", [])


def pytest_configure() -> None:
    """Shows the log on the console, as every command does, because tests read it with capsys."""
    start_console()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a case by its argument and number if its value is bytes.

    Compressed bytes hold the time. With them in a test's name, the processes of pytest-xdist collect different tests.
    """
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(trylast=True)  # after -m and -k have left tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders the tests for the processes of pytest-xdist."""
    if workers := getattr(config, "workerinput", {}).get("workercount"):
        items[:] = spread(items, workers)


@pytest.hookimpl(specname="pytest_collection_modifyitems", tryfirst=True)  # -m must see the marks
def pytest_mark_items(items: list[pytest.Item]) -> None:
    """Marks the quick tests (see test_marks.py), and skips tests marked gpu on a machine without a GPU."""
    import torch

    for item in items:
        of_a_unit = UNIT in item.path.parents or item.path.name in QUICK
        if of_a_unit and not item.get_closest_marker("heavy") and "world" not in item.fixturenames:
            item.add_marker("quick")

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
