"""TensorBoard, W&B and MLflow show the curve of metrics.jsonl, also of a killed run; none of them can end a run."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError
from randcond.train.sinks.open_sinks import check_sinks
from randcond.train.sinks.wandb_file import records
from tests.support import warm
from tests.support.demo import TINY, on_ranks, randcond
from tests.support.interruptions import wait_for
from tests.support.patience import HANG
from tests.support.web import free_port

WORDS = ["demo-with", *TINY, "train.log_every=1", "train.sample_every=8", "engine.processes=1"]
SINKS = "watch.sinks=[tensorboard,wandb,mlflow]"
RUN = Path("runs/demo/with")
LOSS, SCORE = "loss/total", "eval/raw/all/digit_accuracy"
Curve = list[tuple[int, float]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of MLflow; its address."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    deadline = time.monotonic() + HANG
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pool and cache."""
    folder = tmp_path_factory.mktemp("sinks")
    for stage in ("pool", "cache"):
        randcond(folder, "run", stage, *WORDS)
    return folder


def training(folder: Path, tracker: str, *words: str) -> warm.Command:
    environment = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": tracker, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    return on_ranks(1, "randcond.train", [*WORDS, SINKS, *words], folder, environment)[0]


def own(run: Path, name: str = LOSS) -> Curve:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines if name in line]


def in_tensorboard(run: Path, name: str) -> Curve:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["teacher over student"]
    assert {"configuration/text_summary", "custom_scalars__config__"} <= set(events.Tags()["tensors"])
    return [(event.step, event.value) for event in events.Scalars(name)]


def in_mlflow(server: str, run: Path, name: str) -> Curve:
    client, number = MlflowClient(server), json.loads((run / "mlflow.json").read_text())["id"]
    found = client.get_run(number)
    assert found.info.status == "FINISHED" and found.data.params["train.steps"] == "24"
    assert {file.path for file in client.list_artifacts(number)} == {"grids"}
    return [(metric.step, metric.value) for metric in client.get_metric_history(number, name)]


def in_wandb(run: Path, name: str) -> Curve:
    """Returns what `wandb sync` would upload: the records of all processes of the run."""
    known, curve = json.loads((run / "wandb.json").read_text())["id"], []
    for path in sorted(run.glob(f"wandb/offline-run-*/run-{known}.wandb")):
        for data in records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                if name in values:
                    curve.append((record.history.step.num, float(values[name])))
    return curve


def assert_same(found: Curve, expected: Curve) -> None:
    assert [step for step, _ in found] == [step for step, _ in expected]  # each step once
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_a_killed_and_resumed_run_has_one_curve_everywhere(server: str, prepared: Path) -> None:
    run = prepared / RUN
    words = ["train.steps=24", "train.eval_every=8"]
    process = warm.Process(training(prepared, server, *words))
    there = run / "checkpoints" / "step-00000004"
    wait_for(lambda: there.is_dir() and len(own(run)) >= 7 and (run / "mlflow.json").is_file(), process)
    process.kill()
    process.wait()
    done = warm.run([training(prepared, server, *words)])[0]
    assert done.returncode == 0 and "resuming" in done.stdout, done.stdout + done.stderr
    expected = own(run)
    assert [step for step, _ in expected] == list(range(1, 25))
    scores = own(run, SCORE)
    assert [step for step, _ in scores] == [8, 16, 24]
    for name, curve in ((LOSS, expected), (SCORE, scores)):
        assert_same(in_tensorboard(run, name), curve)
        assert_same(in_mlflow(server, run, name), curve)
        assert_same(in_wandb(run, name), curve)
    assert not list(run.glob("wandb/*/files/wandb-metadata.json"))  # it would hold the command line
    assert sorted(path.name for path in (run / "grids").iterdir()) == [f"step-000000{n:02d}.png" for n in (8, 16, 24)]


def test_a_tracker_that_is_down_does_not_end_a_run(prepared: Path) -> None:
    folder = prepared / "down"
    words = [f"paths.run={folder}", f"paths.cache={prepared}/runs/demo/cache", f"paths.pool={prepared}/runs/demo/pool"]
    secret = "very-secret-word"
    address = f"http://me:{secret}@127.0.0.1:{free_port()}"
    done = warm.run([training(prepared, address, "train.steps=3", "watch.sinks=[mlflow]", *words)])[0]
    assert done.returncode == 0 and (folder / "train.json").is_file(), done.stderr
    said = done.stdout + done.stderr
    assert said.count("mlflow: out of reach") == 1 and "the training goes on" in said
    assert "mlflow: 3 values or pictures were not sent; metrics.jsonl has all values" in said
    assert secret not in said and secret not in "".join(path.read_text() for path in (folder / "logs").rglob("*.log"))
    assert len(own(folder)) == 3 and not (folder / "tensorboard").exists()


@pytest.mark.slow  # it waits for the service as long as a user would
def test_a_service_that_is_down_does_not_hold_up_the_end(prepared: Path) -> None:
    folder, key = prepared / "silent", "f" * 40
    words = [f"paths.run={folder}", f"paths.cache={prepared}/runs/demo/cache", f"paths.pool={prepared}/runs/demo/pool"]
    command = training(prepared, "", "train.steps=3", "watch.sinks=[wandb]", *words)
    address = f"http://127.0.0.1:{free_port()}"
    online = {"WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": key, "HOME": str(prepared)}
    began = time.monotonic()
    done = warm.run([warm.Command(command.module, command.words, command.folder, {**command.environment, **online})])[0]
    assert done.returncode == 0 and (folder / "train.json").is_file(), done.stderr
    assert "wandb: 3 values or pictures were not sent" in done.stdout + done.stderr
    assert time.monotonic() - began < HANG
    assert not any(
        key in path.read_text(errors="replace") for path in folder.rglob("*") if path.suffix in (".log", ".yaml")
    )


def test_what_a_tracker_lacks_is_named_in_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("demo-with", ["watch.sinks=[wandb]"])
    script = "from randcond.launch.config.experiments import load_config\n"
    script += "from randcond.train.sinks.open_sinks import check_sinks\n"
    script += "check_sinks(load_config('demo-with', ['watch.sinks=[wandb]']))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "watch.sinks: wandb has no key: run `wandb login`, set WANDB_API_KEY, or work offline with" in done.stderr
    monkeypatch.setattr("randcond.train.sinks.wandb_sink.is_offline", lambda: True)
    check_sinks(config)
    with pytest.raises(UserError, match=r"watch\.sinks"):
        load_config("demo-with", ["watch.sinks=[aim]"])
