"""The list of an experiment's keys, their JSON schema, and the list of experiments."""

import json
import re

import pytest
import yaml

from randcond.launch.config.experiments import experiment_names, load_config, table_names, to_dict
from randcond.launch.config_command import config
from randcond.launch.errors import UserError
from randcond.launch.keys import all_keys, json_schema
from randcond.launch.list_command import list_


def test_every_key_is_listed_with_a_meaning_and_an_example_that_loads() -> None:
    keys = list(all_keys())
    base = to_dict(load_config("demo-with"))
    for key in keys:
        section = base
        for part in key.name.split("."):
            assert part in section, key.name
            section = section[part]
        assert len(key.meaning) > 4 and key.kind, key.name
        name, _, value = key.example.partition("=")
        assert name == key.name and yaml.safe_load(value) is not None
        try:
            load_config("demo-with", [key.example])
        except UserError as error:  # only what other keys contradict, never the type
            assert not re.search("valid|unknown key|is empty", str(error)), str(error)
    assert len(keys) >= 120 and {key.name for key in keys} >= {"train.lr", "eval.compbench.blip", "train.losses.task"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.lr", ["type     float", "default  5e-05", "example  train.lr=5e-05"]),
        ("student", ["student.rule: str = block-base", "student.init: str = teacher"]),
        ("", ["paths.run", "conditioning.p"]),
    ],
)
def test_keys_are_shown(word: str, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config(word)
    text = capsys.readouterr().out
    assert all(each in text for each in said), text


def test_an_unknown_key_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"no key 'train\.stepz'; did you mean 'train\.steps'"):
        config("train.stepz")
    for word, keys in (("steps", "'cache.steps' or 'eval.steps' or 'train.steps'"), ("lr", "'train.lr'")):
        with pytest.raises(UserError, match=f"no key '{word}'; did you mean {keys}"):
            config(word)


def test_the_schema_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    config(schema=True)
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    assert schema["$defs"]["Train"]["properties"]["warmup"]["description"] == "steps of linear warm-up"
    assert "required" not in schema and schema["properties"]["base"]["anyOf"]


def test_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    list_()
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert names == {*experiment_names(), *table_names()}
    list_("koala")
    assert 0 < len(capsys.readouterr().out.splitlines()) < len(names)
    with pytest.raises(UserError, match="has 'nothing-like-it'"):
        list_("nothing-like-it")
