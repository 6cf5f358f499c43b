"""Depth rules for transformers: a student has some of its teacher's blocks, with the teacher's widths."""

from collections.abc import Sequence
from dataclasses import dataclass

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.students.rule import FeaturePair, Student, StudentRule, TensorMap


@dataclass(frozen=True)
class DepthRule(StudentRule):
    """Keeps `count` blocks of a stack, evenly spaced with the first and the last, or those that `kept` names."""

    count: int
    kept: tuple[int, ...] | None = None

    @property
    def summary(self) -> str:  # type: ignore[override]
        """One line for tables and model cards."""
        which = f"blocks {', '.join(map(str, self.kept))}" if self.kept else f"{self.count} blocks, evenly spaced"
        return f"{which}, of the teacher's width"

    def derive(self, teacher: Architecture) -> Student:
        stack = teacher.family.stack(teacher.config)
        if stack is None:
            raise UserError(f"needs a transformer, but the teacher has a {teacher.model.__name__}; use a block rule")
        depth = len(stack.names)
        kept = self.kept or evenly_spaced(self.count, depth)
        _check(kept, depth, stack.last_stays)
        denoiser = Architecture(teacher.model, teacher.family.with_blocks(teacher.config, kept), teacher.side)
        ours = teacher.family.stack(denoiser.config)
        assert ours is not None
        return Student(denoiser, _pairs(stack.taps, ours.taps, kept), _names(stack.names, ours.names, kept), False)

    @property
    def copies(self) -> bool:
        return True


def evenly_spaced(count: int, depth: int) -> tuple[int, ...]:
    """Returns the numbers of `count` of `depth` blocks: the first of each of `count` equal groups, and the last of all.

    Raises UserError if there are not so many.

    >>> evenly_spaced(4, 8)
    (0, 2, 4, 7)
    """
    if not 2 <= count <= depth:
        raise UserError(f"the teacher has {depth} blocks; a student has 2 to {depth} of them, got {count}")
    return (*(number * depth // count for number in range(count - 1)), depth - 1)


def _check(kept: Sequence[int], depth: int, last_stays: bool) -> None:
    """Raises UserError if a teacher has not these blocks, or can't do without its last one."""
    if list(kept) != sorted(set(kept)) or not kept:
        raise UserError(f"student.keep: expected rising numbers of blocks, each once, got {list(kept)}")
    if kept[0] < 0 or kept[-1] >= depth:
        raise UserError(f"student.keep: {list(kept)}: the teacher's blocks are 0 to {depth - 1}")
    if last_stays and kept[-1] != depth - 1:
        raise UserError(
            f"student.keep: {list(kept)}: the last block ({depth - 1}) must be kept, because only it leaves out the "
            f"text at its end"
        )


def _pairs(theirs: Sequence[Sequence[str]], ours: Sequence[Sequence[str]], kept: Sequence[int]) -> list[FeaturePair]:
    """Returns the feature pairs: each kept block and the last teacher block that it stands for.

    A kept block stands for itself and the dropped blocks that follow it.
    """
    last = [*(following - 1 for following in kept[1:]), len(theirs) - 1]
    return [
        pair for stands_for, taps in zip(last, ours, strict=True) for pair in zip(theirs[stands_for], taps, strict=True)
    ]


def _names(theirs: Sequence[str], ours: Sequence[str], kept: Sequence[int]) -> TensorMap:
    """Returns the map from student tensor names to teacher tensor names."""
    source = {own: theirs[number] for own, number in zip(ours, kept, strict=True)}

    def teacher_name(name: str) -> str:
        block = ".".join(name.split(".")[:2])
        return name.replace(block, source[block], 1) if block in source else name

    return teacher_name
