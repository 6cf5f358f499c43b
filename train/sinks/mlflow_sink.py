"""MLflow: the server of MLFLOW_TRACKING_URI, or a local database mlflow.db in the working directory without one."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from randcond.launch.errors import UserError
from randcond.train.sinks.known_runs import known_run, remember_run
from randcond.train.sinks.sink import RunFacts, Sent, Sink

_LONGEST = 500  # characters of a parameter
_AT_ONCE = 100  # parameters of a request, at most
_PICTURES = "grids"  # folder of the run's artifacts


def check_mlflow() -> None:
    """Raises UserError if MLFLOW_TRACKING_URI is a folder, which MLflow takes no more."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    is_named = "://" in address or address.startswith("databricks")  # a service or a database
    if address and (address.startswith("file:") or not is_named):
        raise UserError(
            f"MLFLOW_TRACKING_URI: {address} is a folder, and MLflow keeps runs in databases; give the address of a "
            f"server, or sqlite:///FILE, or unset it for mlflow.db in the working directory"
        )


class MlflowSink(Sink):
    """Logs to a run of MLflow, which a resumed training continues."""

    name: ClassVar[str] = "mlflow"

    def __init__(self, facts: RunFacts) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        known = known_run(facts.folder, self.name)
        self.run_id = known or self._create(facts)
        remember_run(facts.folder, self.name, self.run_id)
        self.client.update_run(self.run_id, status="RUNNING")
        run = self.client.get_run(self.run_id)
        if not run.data.params:
            self._describe(facts)
        scores = [name for name in run.data.metrics if name.startswith("eval/")]
        self.sent = Sent(self._last("loss/total"), self._last(scores[0]) if scores else 0, self._last_picture())
        for step, values in facts.history:
            self.values(step, values)

    def _create(self, facts: RunFacts) -> str:
        found = self.client.get_experiment_by_name(facts.project)
        experiment = found.experiment_id if found else self.client.create_experiment(facts.project)
        return str(self.client.create_run(experiment, run_name=facts.name).info.run_id)

    def _describe(self, facts: RunFacts) -> None:
        """Sends the configuration as the run's parameters."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_LONGEST]) for key, value in _leaves(facts.configuration)]
        for start in range(0, len(params), _AT_ONCE):
            self.client.log_batch(self.run_id, params=params[start : start + _AT_ONCE])

    def _last(self, name: str) -> int:
        """Returns the last step of a metric; 0 if it has none."""
        return max((metric.step for metric in self.client.get_metric_history(self.run_id, name)), default=0)

    def _last_picture(self) -> int:
        paths = [PurePosixPath(file.path).stem for file in self.client.list_artifacts(self.run_id, _PICTURES)]
        return max((int(stem.removeprefix("step-")) for stem in paths), default=0)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        before = replace(self.sent)
        if self.sent.takes(step, values):
            try:
                self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in values.items()])
            except Exception:
                self.sent = before
                raise

    def picture(self, step: int, name: str, path: Path) -> None:
        before = replace(self.sent)
        if self.sent.takes_picture(step):
            try:
                self.client.log_artifact(self.run_id, str(path), _PICTURES)
            except Exception:
                self.sent = before
                raise

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")

    def answers(self) -> bool:
        try:
            self.client.get_run(self.run_id)
        except Exception:  # of the client, of its HTTP library, of the network
            return False
        return True


def _leaves(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Returns nested settings by their dotted keys."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        found += _leaves(value, f"{above}{key}.") if inner else [(f"{above}{key}", value)]
    return found
