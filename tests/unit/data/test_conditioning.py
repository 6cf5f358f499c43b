"""The values of p(t) in Table C, and errors that name the key."""

import math

import numpy as np
import pytest

from randcond.data.stream.conditioning import PROBABILITIES, probability_table
from randcond.launch.errors import UserError

T = 1000


@pytest.mark.parametrize(
    ("name", "args", "at"),  # values computed from the paper's formulas
    [
        ("none", {}, {0: 0.0, 999: 0.0}),
        ("exponential", {}, {0: math.exp(-5), 500: math.exp(-2.5), 900: math.exp(-0.5)}),
        ("exponential", {"lam": 2}, {500: math.exp(-1)}),
        ("mirrored", {}, {0: 1.0, 100: math.exp(-0.5), 500: math.exp(-2.5), 900: math.exp(-0.5)}),
        ("linear", {}, {0: 0.0, 250: 0.25, 999: 0.999}),
        ("sigmoid", {}, {700: 0.5, 0: 1 / (1 + math.exp(14)), 900: 1 / (1 + math.exp(-4))}),
        ("constant", {"value": 0.5}, {0: 0.5, 999: 0.5}),
        ("constant", {"value": 1.0}, {0: 1.0, 999: 1.0}),
    ],
)
def test_values_of_table_c(name: str, args: dict[str, float], at: dict[int, float]) -> None:
    table = probability_table(name, args, T)
    assert len(table) == T
    for timestep, value in at.items():
        assert table[timestep] == pytest.approx(value, rel=1e-12)


def test_mistakes_name_the_key() -> None:
    with pytest.raises(UserError, match=r"conditioning\.p: unknown p\(t\) 'exp'; known: none, exponential"):
        probability_table("exp", {}, T)
    with pytest.raises(UserError, match=r"conditioning\.p_args\.lambda: unknown argument of exponential; known: lam"):
        probability_table("exponential", {"lambda": 2}, T)
    with pytest.raises(UserError, match=r"p\(t\) is 1.5 to 1.5 .* expected 0 to 1"):
        probability_table("constant", {"value": 1.5}, T)


def test_all_are_increasing_but_the_mirrored_and_constant_ones() -> None:
    for name in PROBABILITIES:
        rising = bool((np.diff(probability_table(name, {}, T)) >= 0).all())
        assert rising == (name != "mirrored")
