"""A demo that is interrupted in every stage ends with the same report as an uninterrupted one."""

from pathlib import Path

import pytest

from tests.support.demo import TINY, randcond
from tests.support.interruptions import interrupted_demo, read_report


@pytest.mark.slow
def test_an_interrupted_demo_ends_with_the_same_report(tmp_path: Path) -> None:
    longer = [*TINY, "train.steps=60"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    randcond(tmp_path / "whole", "run", "all", "demo", *longer)
    assert interrupted_demo(tmp_path / "cut", longer) == read_report(tmp_path / "whole")
