"""The keys of depth students and of a flow's timesteps: what contradicts is named before any work."""

import pytest

from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError

FLOW = "demo-flow-with"


def test_kept_blocks_are_part_of_the_rule() -> None:
    student = load_config(FLOW, ["student.keep=[0,2,5,7]"]).student
    assert student.full_rule == "depth-[0,2,5,7]"
    assert load_config(FLOW, []).student.full_rule == "depth-4"
    of_two_kinds = load_config(FLOW, ["student.rule=depth-2+1", "student.keep=[0,4,9]"]).student
    assert of_two_kinds.full_rule == "depth-[0,4,9]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["student.keep=[0,7]"], "student.keep: names 2 blocks, but student.rule is depth-4; use student.rule=depth-2"),
        (["student.rule=depth-2+2", "student.keep=[0,7]"], r"names 2 blocks, but student.rule is depth-2\+2; use"),
        (["student.rule=depth-1", "student.keep=[7]"], r"student.keep: expected at least 2 blocks, got \[7\]"),
        (["train.shift=0"], "train.shift: must be above 0, got 0"),
        (["teacher.text_tokens=0"], "teacher.text_tokens: must be at least 1, got 0"),
    ],
)
def test_contradictions_are_named(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(FLOW, words)
