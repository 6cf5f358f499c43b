"""A tracker's thread: order, outages, errors of ours, and a training that never waits for it."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from randcond.launch.errors import UserError
from randcond.train.sinks import tracker as module
from randcond.train.sinks.mlflow_sink import check_mlflow
from randcond.train.sinks.sink import Sent, Sink
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

    def close(self, finished: bool) -> None:
        self._take("finished" if finished else "failed")

    def answers(self) -> bool:
        return not isinstance(self.broken(), ConnectionError)


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
    sent.close(True)
    assert sink.got == [*((step, {"loss": float(step)}) for step in (1, 2, 3)), (3, "a grid"), "finished"]
    assert caplog.text.count("out of reach") == 1 and "answers again" in caplog.text and "secret" not in caplog.text
    assert "not sent" not in caplog.text


def test_what_is_never_sent_is_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_TRY", 0.2)
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    sent = Tracker("flaky", lambda: Flaky(lambda: ConnectionError("refused")))
    for step in range(5):
        sent.values(step, {})
    sent.close(True)
    assert "flaky: 5 values or pictures were not sent" in caplog.text


def test_what_a_tracker_refuses_does_not_hold_up_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Flaky):
        def picture(self, step: int, name: str, path: Path) -> None:
            raise TypeError("no artifacts here")

    sink = Picky(lambda: None)
    sent = Tracker("flaky", lambda: sink)
    sent.values(1, {"loss": 1.0})
    sent.picture(1, "a grid", Path("grid.png"))
    sent.values(2, {"loss": 2.0})
    sent.close(False)
    assert sink.got == [(1, {"loss": 1.0}), (2, {"loss": 2.0}), "failed"]
    assert "flaky: does not take a value or picture (no artifacts here)" in caplog.text
    assert "flaky: 1 values or pictures were not sent" in caplog.text and "out of reach" not in caplog.text


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


def test_a_tracker_without_an_answer_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may try for minutes before it raises an error."""
    monkeypatch.setattr(module, "SILENCE", 0.0)
    opening, sink = threading.Event(), Flaky(lambda: None)

    def late() -> Sink:
        opening.wait(60)
        return sink

    sent = Tracker("flaky", late)
    time.sleep(0.01)
    for step in (1, 2, 3):
        sent.values(step, {})
    assert caplog.text.count("flaky: no answer for 0 s; the training goes on") == 1
    opening.set()
    sent.close(True)
    assert "answers again" in caplog.text and len(sink.got) == 4


@pytest.mark.parametrize("address", ["file:///runs/ml", "runs/ml", "/runs/ml"])
def test_a_folder_is_no_mlflow_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: .* is a folder, and MLflow keeps runs in databases"):
        check_mlflow()
    for good in ("", "http://host:5000", "sqlite:///runs.db", "databricks"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", good)
        check_mlflow()


def test_what_a_resumed_run_computes_again_is_not_new() -> None:
    loss, scores = {"loss/total": 1.0}, {"eval/raw/all/fid": 9.0}
    sent = Sent(values=11, scores=8, pictures=8)
    assert not sent.takes(9, loss) and not sent.takes(11, loss) and not sent.takes(8, scores)
    assert sent.takes(10, scores) and not sent.takes(10, scores)  # the kill came in the evaluation at 10
    assert sent.takes(12, loss) and not sent.takes(12, loss)
    assert not sent.takes_picture(8) and sent.takes_picture(10)
