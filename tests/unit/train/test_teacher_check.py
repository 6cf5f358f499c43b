"""`randcond teacher check` says what kind of teacher a folder is."""

from pathlib import Path

import pytest

from randcond.model_zoo.students_command import students
from randcond.train.tools.teacher_command import check

MODELS = Path(__file__).parents[3] / "data/digits/models"


FACTS = {
    "teacher": (
        "StableDiffusionPipeline",
        "8.6M parameters",
        "32 x 32 pixels",
        "77 tokens, from CLIPTextModel\n",
        "discrete betas, predicts epsilon, 1000 timesteps",
        "block-base by default",
    ),
    "flow-teacher": (
        "StableDiffusion3Pipeline",
        "4.7M parameters, 8 blocks",
        "32 x 32 pixels",
        "2 x CLIPTextModel",
        "rectified flow, 1000 timesteps",
        "depth-4 by default",
    ),
}


@pytest.mark.parametrize("name", FACTS)
def test_it_tells_what_is_distilled(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(str(MODELS / name))
    said = capsys.readouterr().out
    assert [fact for fact in FACTS[name] if fact not in said] == []
    assert said.splitlines()[-1].startswith("next: randcond init mine.yaml --teacher ")


def test_a_transformers_students_have_a_width_and_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    students(teacher=str(MODELS / "flow-teacher"), rule="depth-3")
    header, teacher, student = (line.split() for line in capsys.readouterr().out.splitlines()[1:4])
    assert header[:2] == ["width", "blocks"] and "mid" not in header
    assert teacher[:3] == ["teacher", "128", "8"] and student[:3] == ["depth-3", "128", "3"]
