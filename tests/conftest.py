"""Shared fixtures: the command line in a folder of its own, and one small world that the tests train in."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from randcond.launch.runtime.logs import start_console
from tests.support.demo import TINY, randcond

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # several test processes share the cores: no thread waits busily


UNIT = Path(__file__).parent / "unit"
QUICK = {"test_older_artefacts.py"}  # a cache, a pool, an evaluation and a training, from end to end


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the tiny demo has run once, every stage of both arms, on two ranks.

    Made once for all of pytest-xdist's processes; each has its own copy.
    """
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny-demo"
    with FileLock(made.with_suffix(".lock")):
        if not made.is_dir():
            unfinished = tmp_path_factory.mktemp("tiny-demo")
            randcond(unfinished, "run", "all", "demo", *TINY)
            unfinished.rename(made)
    folder = tmp_path_factory.mktemp("world")
    return Path(shutil.copytree(made, folder, dirs_exist_ok=True))


def pytest_configure() -> None:
    """Shows the log on the console, as every command does: tests read it with capsys."""
    start_console()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the tests, marks the quick ones, and skips tests marked gpu where there is none.

    Files without the small world come first: one process makes it while the others have something to do.
    """
    import torch

    of_world = {item.path for item in items if "world" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in of_world)
    for item in items:
        of_a_unit = UNIT in item.path.parents or item.path.name in QUICK
        if of_a_unit and not item.get_closest_marker("heavy") and "world" not in item.fixturenames:
            item.add_marker("quick")

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
