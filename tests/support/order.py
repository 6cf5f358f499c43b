"""The order of tests for several processes: all have costly files first and cheap ones last, and end together.

pytest-xdist (--dist worksteal) gives each process an equal, contiguous part of the list. A process without work takes
tests from the end of the longest rest, but never the last two. So these should be cheap.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest

# Rough seconds of a test. Only their ratios count.
LONG, HEAVY, STAGE, CHEAP = 30.0, 7.0, 1.0, 0.2
STAGES = ("stages", "faults")  # folders whose tests start processes


def spread(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Returns the tests in `workers` parts of equal length and about equal cost. The tests of a file stay together.

    The first part begins with the files that use the fixture `world`, which one process makes. The others end their
    costly files with those.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    costly = {path: group for path, group in files.items() if max(map(seconds, group)) >= STAGE}
    cheap = [item for path, group in files.items() if path not in costly for item in group]
    parts: list[list[Path]] = [[] for _ in range(workers)]
    cost = [0.0] * workers
    for path in sorted(costly, key=lambda path: (-sum(map(seconds, costly[path])), path)):
        lightest = cost.index(min(cost))
        parts[lightest].append(path)
        cost[lightest] += sum(map(seconds, costly[path]))
    ordered: list[pytest.Item] = []
    for number, part in enumerate(parts):
        # Of equal files the costliest come first, because `parts` has them in that order.
        part.sort(key=lambda path, first=number == 0: _uses_world(costly[path]) != first)  # type: ignore[misc]
        mine = [item for path in part for item in costly[path]]
        room = max(0, (len(items) - len(ordered)) // (workers - number) - len(mine))
        ordered += [*mine, *cheap[:room]]
        cheap = cheap[room:]
    return [*ordered, *cheap]


def seconds(item: pytest.Item) -> float:
    """Returns a guess of how long a test takes, by its marks, fixtures and folder."""
    if item.get_closest_marker("long"):
        return LONG
    if item.get_closest_marker("heavy") or _uses_world([item]):
        return HEAVY
    return STAGE if item.path.parent.name in STAGES else CHEAP


def _uses_world(items: Iterable[pytest.Item]) -> bool:
    return any("world" in getattr(item, "fixturenames", ()) for item in items)
