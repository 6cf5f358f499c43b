"""Which settings belong to the identity of an artefact, and how two identities are compared."""

import dataclasses
from typing import get_type_hints

import pytest

from randcond.launch.config.experiments import load_config
from randcond.launch.config.identity import absent_settings, declared, differences, identity_of
from randcond.launch.config.sections import Config, Train
from randcond.train.state.identity import ABSENT


def test_every_key_declares_what_it_decides() -> None:
    """A key without a declaration could change an artefact unnoticed, or make existing artefacts unusable."""
    sections, missing = [Config], []
    while sections:
        section = sections.pop()
        for name, decides in declared(section).items():
            inner = get_type_hints(section)[name]
            if dataclasses.is_dataclass(inner):
                sections.append(inner)
            elif decides is None:
                missing.append(f"{section.__name__}.{name}")
    assert missing == []


def test_a_runs_identity_holds_what_decides_it_and_nothing_else() -> None:
    train = identity_of(load_config("demo-with").train, "run")
    assert list(train) == [
        *(
            "global_batch",
            "optimizer",
            "lr",
            "schedule",
            "warmup",
            "decay",
            "min_lr",
            "betas",
            "weight_decay",
            "eps",
            "timesteps",
            "shift",
            "grad_clip",
        ),
        *("ema_decay", "losses", "feature_loss", "seed"),
    ]
    assert train["losses"] == {"output": 1.0, "feature": 1.0}  # losses with weight 0 are left out


@pytest.mark.parametrize(
    ("stored", "expected", "said"),
    [
        ({"train": {"lr": 1e-3}}, {"train": {"lr": 1e-3, "eps": 1e-8}}, []),  # an absent key has its default
        ({"train": {"lr": 1e-3}}, {"train": {"lr": 1e-3, "eps": 1e-6}}, ["train.eps is 1e-08 there, 1e-06 here"]),
        ({"train": {"lr": 1e-3, "eps": 1e-8}}, {"train": {"lr": 1e-3}}, []),
        ({"train": {"losses": {"task": 1.0}}}, {"train": {"losses": {}}}, ["train.losses.task is 1.0 there, 0.0 here"]),
        ({"train": {"gone": 1}}, {"train": {}}, ["train.gone is 1 there, None here"]),
        ({"student": {"rule": "a"}}, {"student": {"rule": "a", "start_from": ""}}, []),
        ({"conditioning": {"p_args": {}}}, {"conditioning": {"p_args": {"lam": 5.0}}}, ["conditioning.p_args is {}"]),
        ({"text_tokens": 16}, {"text_tokens": None}, ["text_tokens is 16 there, None here"]),
        ({}, {"text_tokens": None, "text_dtype": None}, []),  # an older artefact
        ({"made_by": "anything"}, {"teacher": "a"}, ["teacher is None there, 'a' here"]),  # other top keys are ignored
    ],
)
def test_identities_are_compared_leaf_by_leaf(stored: dict, expected: dict, said: list[str]) -> None:
    found = [str(difference) for difference in differences(stored, expected, ABSENT)]
    assert len(found) == len(said), found
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True)), found


def test_of_two_long_lists_the_first_place_is_named() -> None:
    (one,) = differences({"cache": [*"abcdefghij"]}, {"cache": [*"abcdefghXj"]})
    assert str(one) == "cache[8] is 'i' there, 'X' here (of 10 entries there, 10 here)"
    (one,) = differences({"cache": [*"abcdefghij"]}, {"cache": [*"abcdefghijk"]})
    assert str(one) == "cache has 10 entries there, 11 here"


def test_what_a_missing_setting_stands_for() -> None:
    absent = absent_settings(Train, "run", above="train.")
    assert absent["train.lr"] == 5e-5 and absent["train.losses.output"] == 0.0
    assert "train.steps" not in absent
