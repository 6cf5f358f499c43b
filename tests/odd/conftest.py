"""Fixtures of the tests of odd inputs."""

import pytest

from randcond.data.inputs import fetch as fetching


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a download try again at once, and give up after four tries."""
    monkeypatch.setattr(fetching, "PATIENCE", 0.001)
    monkeypatch.setattr(fetching, "TRIES", 4)
