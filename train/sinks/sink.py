"""The interface of a sink. To add one, derive a class and add it to open_sinks.py."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

GRID = "teacher over student"  # name of the sample grids


@dataclass(frozen=True)
class RunFacts:
    """What a sink needs to know about a run."""

    name: str  # of the experiment
    project: str  # W&B's project, MLflow's experiment
    folder: Path  # of the run
    first: int  # the step that the run resumes from; 0: it begins
    configuration: Mapping[str, Any]  # resolved, as plain data, without secrets
    history: tuple[tuple[int, dict[str, float]], ...] = ()  # the values of metrics.jsonl up to `first`, by step


@dataclass
class Sent:
    """The last steps that a tracker has. A resumed run computes some of them again."""

    values: int = 0
    scores: int = 0  # of evaluations, which come after the values of their step
    pictures: int = 0

    def takes(self, step: int, values: Mapping[str, float]) -> bool:
        """Returns True if values are new, and counts them as sent."""
        kind = "scores" if all(name.startswith("eval/") for name in values) else "values"
        return self._takes(kind, step)

    def takes_picture(self, step: int) -> bool:
        """Returns True if a picture is new, and counts it as sent."""
        return self._takes("pictures", step)

    def _takes(self, kind: str, step: int) -> bool:
        if step <= getattr(self, kind):
            return False
        setattr(self, kind, step)
        return True


class Sink(ABC):
    """Takes the values and pictures of a training on rank 0."""

    name: ClassVar[str]  # as in watch.sinks

    @abstractmethod
    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Takes scalars by name: those of a step, or the scores of an evaluation (eval/...)."""

    @abstractmethod
    def picture(self, step: int, name: str, path: Path) -> None:
        """Takes a picture, a PNG file."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Sends what is left. finished: False if the run has failed, or will be resumed."""

    def answers(self) -> bool:
        """Returns False if the tracker is out of reach. Asked after a call has failed."""
        return True

    @staticmethod  # noqa: B027
    def abandon() -> None:
        """Gives up what close() can't send. Called instead of waiting for it."""
