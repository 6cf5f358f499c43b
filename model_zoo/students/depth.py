"""Depth rules for transformers: a student has some of its teacher's blocks, with the teacher's widths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.families.base.family import Stack
from randcond.model_zoo.students.rule import FeaturePair, Student, StudentRule, TensorMap


@dataclass(frozen=True)
class DepthRule(StudentRule):
    """Keeps `counts` blocks of each run of equal blocks, evenly spaced, or exactly those in `kept`."""

    counts: tuple[int, ...]
    kept: tuple[int, ...] | None = None

    @property
    def summary(self) -> str:  # type: ignore[override]
        """One line for tables and model cards."""
        if self.kept:
            return f"blocks {', '.join(map(str, self.kept))}, of the teacher's width"
        return f"{' + '.join(map(str, self.counts))} blocks, evenly spaced, of the teacher's width"

    def derive(self, teacher: Architecture) -> Student:
        stack = teacher.family.stack(teacher.config)
        if stack is None:
            raise UserError(f"needs a transformer, but the teacher has a {teacher.model.__name__}; use a block rule")
        kept = self.kept or _spread(self.counts, stack.groups)
        _check(kept, stack)
        denoiser = replace(teacher, config=teacher.family.with_blocks(teacher.config, kept))
        ours = teacher.family.stack(denoiser.config)
        assert ours is not None
        return Student(denoiser, _pairs(stack, ours.taps, kept), _names(stack.names, ours.names, kept), False)

    @property
    def copies(self) -> bool:
        return True


def _spread(counts: Sequence[int], groups: Sequence[int]) -> tuple[int, ...]:
    """Returns the numbers of the kept blocks, evenly spaced in each run of equal blocks. groups: the runs' lengths.

    Raises UserError if the teacher has other runs.
    """
    if len(counts) != len(groups):
        have, example = " + ".join(map(str, groups)), "+".join(str(max(2, length // 2)) for length in groups)
        raise UserError(f"the teacher has {have} blocks; say how many of each a student keeps, such as depth-{example}")
    starts = accumulate(groups, initial=0)
    return tuple(
        start + number
        for start, count, length in zip(starts, counts, groups, strict=False)
        for number in evenly_spaced(count, length)
    )


def evenly_spaced(count: int, depth: int) -> tuple[int, ...]:
    """Returns the numbers of `count` of `depth` blocks: the first of each of `count` equal groups, and the last of all.

    Raises UserError if there are not so many.

    >>> evenly_spaced(4, 8)
    (0, 2, 4, 7)
    """
    if not 2 <= count <= depth:
        raise UserError(f"the teacher has {depth} blocks; a student has 2 to {depth} of them, got {count}")
    return (*(number * depth // count for number in range(count - 1)), depth - 1)


def _check(kept: Sequence[int], stack: Stack) -> None:
    """Raises UserError if a teacher has not these blocks, or can't do without one that is not among them."""
    depth = len(stack.names)
    if list(kept) != sorted(set(kept)) or not kept:
        raise UserError(f"student.keep: expected rising numbers of blocks, each once, got {list(kept)}")
    if kept[0] < 0 or kept[-1] >= depth:
        raise UserError(f"student.keep: {list(kept)}: the teacher's blocks are 0 to {depth - 1}")
    if stack.last_stays and kept[-1] != depth - 1:
        raise UserError(
            f"student.keep: {list(kept)}: the last block ({depth - 1}) must be kept, because only it leaves out the "
            f"text at its end"
        )
    for start, end in pairwise(accumulate(stack.groups, initial=0)):
        if not any(start <= number < end for number in kept):
            raise UserError(
                f"student.keep: {list(kept)}: keep at least one of the blocks {start} to {end - 1}, which are of a kind"
            )


def _pairs(stack: Stack, ours: Sequence[Sequence[str]], kept: Sequence[int]) -> list[FeaturePair]:
    """Returns the feature pairs: each kept block and the last teacher block that it stands for.

    A kept block stands for itself and the dropped blocks of its run that follow it. ours: the taps of the student.
    """
    ends = {end - 1 for end in accumulate(stack.groups)}
    last = [
        next(number for number in range(block, len(stack.names)) if number + 1 in kept or number in ends)
        for block in kept
    ]
    return [
        pair
        for stands_for, taps in zip(last, ours, strict=True)
        for pair in zip(stack.taps[stands_for], taps, strict=True)
    ]


def _names(theirs: Sequence[str], ours: Sequence[str], kept: Sequence[int]) -> TensorMap:
    """Returns the map from student tensor names to teacher tensor names."""
    source = {own: theirs[number] for own, number in zip(ours, kept, strict=True)}

    def teacher_name(name: str) -> str:
        block = ".".join(name.split(".")[:2])
        return name.replace(block, source[block], 1) if block in source else name

    return teacher_name
