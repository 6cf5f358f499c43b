"""Sizes and costs of the published transformer teachers and of their depth students, to the unit.

The numbers were counted with other code, on meta tensors from the published configurations.
"""

import pytest

from randcond.model_zoo.cost.flops import denoiser_cost
from randcond.model_zoo.networks import denoiser_of
from randcond.model_zoo.students.registry import student_of

PARAMETERS = {
    "pixart-sigma": 610_856_096,
    "sd35-medium": 2_243_171_520,
    "flux2-klein-4b": 3_875_544_576,
}
GMAC = {  # forward pass at 512 and 1,024 pixels, layers and attention
    "pixart-sigma": (644, 3_317),
    "sd35-medium": (1_221, 5_625),
    "flux2-klein-4b": (5_087, 17_410),
}
STUDENTS = [  # millions of parameters
    ("pixart-sigma", "depth-14", 313.3),
    ("pixart-sigma", "depth-9", 207.0),
    ("sd35-medium", "depth-16", 1_497.2),
    ("sd35-medium", "depth-12", 1_124.2),
    ("sd35-medium", "depth-8", 751.3),
    ("flux2-klein-4b", "depth-5+10", 2_648.7),
    ("flux2-klein-4b", "depth-3+10", 2_158.0),
]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_teacher_has_its_published_size_and_cost(name: str) -> None:
    teacher = denoiser_of(name)
    assert denoiser_cost(teacher).parameters == PARAMETERS[name]
    pixels = {"flux2-klein-4b": 16}.get(name, 8)  # per latent position
    for side, expected in zip((512, 1024), GMAC[name], strict=True):
        cost = denoiser_cost(teacher.at(side // pixels))
        assert (cost.macs + cost.attention_macs) / 1e9 == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize(("name", "rule", "millions"), STUDENTS)
def test_a_depth_student_has_its_published_size(name: str, rule: str, millions: float) -> None:
    student = student_of(rule, denoiser_of(name)).denoiser.blank()
    assert round(sum(p.numel() for p in student.parameters()) / 1e6, 1) == millions
