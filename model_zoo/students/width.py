"""Width rules for transformers: all of the teacher's blocks, with fewer attention heads."""

from dataclasses import dataclass, replace

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.students.rule import Student, StudentRule


@dataclass(frozen=True)
class WidthRule(StudentRule):
    """Keeps `multiplier` of the heads, each as wide as the teacher's. The student starts from random weights."""

    multiplier: float

    @property
    def summary(self) -> str:  # type: ignore[override]
        """One line for tables and model cards."""
        return f"all blocks, {self.multiplier:g} of the width"

    def derive(self, teacher: Architecture) -> Student:
        stack = teacher.family.stack(teacher.config)
        if stack is None:
            raise UserError(f"needs a transformer, but the teacher has a {teacher.model.__name__}; use a channel rule")
        all_heads = teacher.config["num_attention_heads"]
        heads = max(1, round(all_heads * self.multiplier))
        if heads >= all_heads:
            raise UserError(
                f"{self.multiplier:g} of the width keeps all {all_heads} heads; use at most {1 - 1 / all_heads:.2g}"
            )
        config = teacher.family.with_heads(teacher.config, heads)
        pairs = [(tap, tap) for taps in stack.taps for tap in taps]
        return Student(replace(teacher, config=config), pairs, None, projected=True)

    @property
    def copies(self) -> bool:
        return False
