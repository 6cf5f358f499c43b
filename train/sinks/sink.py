"""The interface of a sink. To add one, derive a class and add it to open_sinks.py."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from randcond.launch.runtime.json_lines import whole_lines


@dataclass(frozen=True)
class RunFacts:
    """What a sink needs to know about a run."""

    name: str  # of the experiment
    project: str  # W&B's project, MLflow's experiment
    folder: Path  # of the run
    first: int  # the step that the run resumes from; 0: it begins
    configuration: Mapping[str, Any]  # resolved, as plain data, without secrets

    def is_new(self, step: int, values: Mapping[str, float], sent: int) -> bool:
        """Returns True if a tracker that has all values up to step `sent` lacks these.

        A resumed run computes the steps after `first` again. At `first` itself it may make up for an evaluation that
        was interrupted.
        """
        return step > sent or (step == self.first and all(name.startswith("eval/") for name in values))

    def history(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields the values that metrics.jsonl has up to `first`, by step."""
        for _, line in whole_lines(self.folder / "metrics.jsonl"):
            if (step := line.pop("step")) > self.first:
                return
            yield step, line


class Sink(ABC):
    """Takes the values and pictures of a training on rank 0."""

    name: ClassVar[str]  # as in watch.sinks

    @abstractmethod
    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Takes scalars by name."""

    @abstractmethod
    def picture(self, step: int, name: str, path: Path) -> None:
        """Takes a picture, a PNG file."""

    @abstractmethod
    def close(self) -> None:
        """Sends what is left. The run has ended, or will be resumed."""

    @staticmethod  # noqa: B027
    def abandon() -> None:
        """Gives up what close() can't send. Called instead of waiting for it."""
