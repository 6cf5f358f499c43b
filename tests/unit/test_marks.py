"""The marks that tests/conftest.py gives. pytest leaves out hooks whose names do not start with pytest_."""

import pytest


def test_a_unit_test_is_quick(request: pytest.FixtureRequest) -> None:
    """`make quick` runs this test."""
    assert request.node.get_closest_marker("quick")


@pytest.mark.heavy
def test_a_heavy_one_is_not(request: pytest.FixtureRequest) -> None:
    assert not request.node.get_closest_marker("quick")
