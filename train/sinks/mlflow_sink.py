"""MLflow: the server of MLFLOW_TRACKING_URI, or a local database mlflow.db in the working directory without one."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from randcond.train.sinks.known_runs import known_run, remember_run
from randcond.train.sinks.sink import RunFacts, Sink

_LONGEST = 500  # characters of a parameter
_AT_ONCE = 100  # parameters of a request, at most


class MlflowSink(Sink):
    """Logs to a run of MLflow, which a resumed training continues."""

    name: ClassVar[str] = "mlflow"

    def __init__(self, facts: RunFacts) -> None:
        from mlflow.tracking import MlflowClient

        self.facts, self.client = facts, MlflowClient()
        if known := known_run(facts.folder, self.name):
            self.client.update_run(known, status="RUNNING")
        self.run_id = known or self._create(facts)
        history = self.client.get_metric_history(self.run_id, "loss/total")
        self.sent = max((metric.step for metric in history), default=0)
        for step, values in facts.history():
            self.values(step, values)

    def _create(self, facts: RunFacts) -> str:
        """Creates a run with the configuration as its parameters, and as a file."""
        from mlflow.entities import Param

        found = self.client.get_experiment_by_name(facts.project)
        experiment = found.experiment_id if found else self.client.create_experiment(facts.project)
        run_id: str = self.client.create_run(experiment, run_name=facts.name).info.run_id
        remember_run(facts.folder, self.name, run_id)
        params = [Param(key, str(value)[:_LONGEST]) for key, value in _leaves(facts.configuration)]
        for start in range(0, len(params), _AT_ONCE):
            self.client.log_batch(run_id, params=params[start : start + _AT_ONCE])
        self.client.log_dict(run_id, dict(facts.configuration), "configuration.yaml")
        return run_id

    def values(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if self.facts.is_new(step, values, self.sent):
            now = int(1000 * time.time())
            self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in values.items()])

    def picture(self, step: int, name: str, path: Path) -> None:
        if step > self.sent:
            self.client.log_artifact(self.run_id, str(path), name.replace(" ", "-"))

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def _leaves(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Returns nested settings by their dotted keys."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        found += _leaves(value, f"{above}{key}.") if inner else [(f"{above}{key}", value)]
    return found
