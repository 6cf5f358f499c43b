"""A tracker's thread: order, outages, errors of ours, and a training that never waits for it."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from randcond.train.sinks import tracker as module
from randcond.train.sinks.sink import RunFacts, Sink
from randcond.train.sinks.tracker import Tracker


class Flaky(Sink):
    """A sink that fails as long as `broken` returns an error."""

    name = "flaky"

    def __init__(self, broken: Callable[[], Exception | None]) -> None:
        self.broken, self.got = broken, []  # type: ignore[var-annotated]

    def _take(self, what: object) -> None:
        if error := self.broken():
            raise error
        self.got.append(what)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        self._take((step, dict(values)))

    def picture(self, step: int, name: str, path: Path) -> None:
        self._take((step, name))

    def close(self) -> None:
        self._take("closed")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "LAST_TRY", 5.0)


def test_an_outage_loses_nothing_and_keeps_the_order(caplog: pytest.LogCaptureFixture) -> None:
    down = threading.Event()
    down.set()
    sink = Flaky(lambda: ConnectionError("refused by https://me:secret@host") if down.is_set() else None)
    sent = Tracker("flaky", lambda: sink)
    for step in range(1, 4):
        sent.values(step, {"loss": float(step)})
    sent.picture(3, "a grid", Path("grid.png"))
    while "out of reach" not in caplog.text:
        time.sleep(0.01)
    assert sink.got == []
    down.clear()
    sent.close()
    assert sink.got == [*((step, {"loss": float(step)}) for step in (1, 2, 3)), (3, "a grid"), "closed"]
    assert caplog.text.count("out of reach") == 1 and "answers again" in caplog.text and "secret" not in caplog.text
    assert "not sent" not in caplog.text


def test_what_is_never_sent_is_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_TRY", 0.2)
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    sent = Tracker("flaky", lambda: Flaky(lambda: ConnectionError("refused")))
    for step in range(5):
        sent.values(step, {})
    sent.close()
    assert "flaky: 6 values or pictures were not sent" in caplog.text  # five, and the end


def test_an_error_of_ours_switches_it_off(caplog: pytest.LogCaptureFixture) -> None:
    sent = Tracker("flaky", lambda: Flaky(lambda: TypeError("no such argument")))
    sent.values(1, {})
    sent.close()
    assert "flaky: switched off: no such argument" in caplog.text


def test_a_sink_that_hangs_does_not_delay_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_TRY", 0.1)
    hanging = threading.Event()

    def hang() -> Sink:
        hanging.wait(60)
        raise ConnectionError

    sent = Tracker("flaky", hang)
    started = time.monotonic()
    for step in range(1000):
        sent.values(step, {"loss": 1.0})
    assert time.monotonic() - started < 20  # it would be a minute
    hanging.set()


def test_what_a_resumed_run_computes_again_is_not_new() -> None:
    facts = RunFacts("demo", "randcond", Path(), first=8, configuration={})
    loss, scores = {"loss/total": 1.0}, {"eval/raw/all/fid": 9.0}
    assert not facts.is_new(9, loss, 11) and not facts.is_new(11, loss, 11) and facts.is_new(12, loss, 11)
    assert facts.is_new(8, scores, 11)  # an evaluation that the kill interrupted
    assert not facts.is_new(8, loss, 11) and not facts.is_new(9, scores, 11)
