"""The learning rate of each step: values worked out by hand, a pure function of the step, and contradictions."""

import math
from dataclasses import replace

import pytest

from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Train
from randcond.launch.errors import UserError
from randcond.train.checks import check_training
from randcond.train.schedule import check_schedule, learning_rate


def rates(**settings: object) -> list[float]:
    train = replace(Train(lr=1.0, steps=10), **settings)  # type: ignore[arg-type]
    check_schedule(train)
    return [learning_rate(train, step) for step in range(1, train.steps + 1)]


HALF_COSINE = [(1 + math.cos(math.pi * n / 8)) / 2 for n in range(8)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0] * 10),
        ({"warmup": 4}, [0.25, 0.5, 0.75] + [1.0] * 7),
        (
            {"warmup": 20},
            [step / 20 for step in range(1, 11)],
        ),  # as older versions do: the constant rate is not reached
        ({"schedule": "linear"}, [1 - n / 10 for n in range(10)]),
        ({"schedule": "linear", "warmup": 2}, [0.5, 1.0, *(1 - n / 8 for n in range(8))]),
        ({"schedule": "linear", "warmup": 2, "min_lr": 0.5}, [0.5, 1.0, *(1 - n / 16 for n in range(8))]),
        ({"schedule": "cosine", "warmup": 2}, [0.5, 1.0, *HALF_COSINE]),
        ({"schedule": "cosine", "warmup": 2, "min_lr": 0.2}, [0.5, 1.0, *(0.2 + 0.8 * f for f in HALF_COSINE)]),
        ({"schedule": "wsd", "warmup": 2, "decay": 0.4}, [0.5] + [1.0] * 6 + [0.75, 0.5, 0.25]),
        ({"schedule": "wsd", "decay": 1.0}, [1 - n / 10 for n in range(10)]),
        ({"schedule": "wsd", "decay": 0.2, "min_lr": 0.1}, [1.0] * 9 + [0.55]),
    ],
)
def test_rates_are_those_worked_out_by_hand(settings: dict[str, object], expected: list[float]) -> None:
    assert rates(**settings) == pytest.approx(expected, rel=1e-12)


def test_the_constant_rate_has_the_bits_of_older_versions() -> None:
    train = Train(lr=3e-4, warmup=7, steps=20)
    assert [learning_rate(train, n) for n in range(1, 21)] == [3e-4 * min(1.0, n / 7) for n in range(1, 21)]


def test_before_its_decay_wsd_does_not_depend_on_the_number_of_steps() -> None:
    short, long = (rates(schedule="wsd", warmup=3, decay=0.1, steps=steps) for steps in (100, 1000))
    assert short[:91] == long[:91] and short[91] < long[91]
    assert all(0 < rate <= 1 for rate in short)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.schedule=cosine", "train.warmup=350"], r"train\.warmup: 350 steps leave too few of train\.steps=350"),
        (["train.schedule=wsd", "train.warmup=320"], r"train\.warmup: 320 steps leave too few"),
        (
            ["train.schedule=wsd", "train.decay=0.001"],
            r"train\.decay: 0\.001 of train\.steps=350 is less than one step",
        ),
        (["train.decay=0.2"], r"train\.decay: needs train\.schedule=wsd, got constant"),
        (["train.schedule=linear", "train.decay=0.2"], r"train\.decay: needs train\.schedule=wsd, got linear"),
        (["train.min_lr=0.1"], r"train\.min_lr: needs train\.schedule=cosine or linear or wsd, got constant"),
        (["train.min_lr=1.5"], r"train\.min_lr: must be between 0 and 1"),
        (["train.schedule=wsd", "train.decay=-1"], r"train\.decay: must be between 0 and 1"),
        (["train.schedule=step"], r"train\.schedule: .*'constant', 'cosine', 'linear' or 'wsd'"),
    ],
)
def test_contradictions_name_the_key_before_any_work(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_training(load_config("demo-with", words), 2)
