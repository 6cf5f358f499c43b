"""A student rule, which derives a student from its teacher, and the student that it derives."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from randcond.model_zoo.denoiser.architecture import Architecture

FeaturePair = tuple[str, str]  # (teacher module, student module), names in the unwrapped networks
TensorMap = Callable[[str], str | None]  # student tensor -> the teacher's tensor to copy, None: it starts random


@dataclass(frozen=True)
class Student:
    """A student of one teacher, without its weights."""

    denoiser: Architecture
    pairs: list[FeaturePair]  # the feature pairs of Eq. 2
    teacher_name: TensorMap | None  # None if the widths differ, so that no tensor can be copied
    projected: bool  # trainable 1x1 convolutions project the student's features to the teacher's widths


class StudentRule(ABC):
    """Derives students from teachers."""

    summary: str  # one line for tables and model cards

    @abstractmethod
    def derive(self, teacher: Architecture) -> Student:
        """Returns the student of a teacher. Raises UserError if the rule does not apply to it."""

    @property
    @abstractmethod
    def copies(self) -> bool:
        """True if the student can start from the teacher's weights."""

    @property
    def is_of_diffusers(self) -> bool:
        """False if only randcond can load the student."""
        return True
