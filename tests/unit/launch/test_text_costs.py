"""The planner prices text encoders that are language models: arithmetic, memory, and what makes them cheaper."""

from dataclasses import replace
from typing import Any

import pytest

from randcond.launch.config.experiments import load_config
from randcond.launch.config.gpus import find_gpu
from randcond.launch.config.sections import Config
from randcond.launch.planning.costs import Cluster, Sizes, counted
from randcond.launch.planning.fitting import USABLE, training_memory, ways_to_fit
from randcond.launch.planning.step_time import HOST_LINK, step_seconds

H200 = Cluster(find_gpu("h200"), 1, 1)
TEXT = "text encoders and VAE"


def config(teacher: str, rule: str, **text: Any) -> Config:
    words = [f"teacher.path={teacher}", f"student.rule={rule}", "cache.resolution=512", "eval.resolution=512"]
    words += ["cache.sampler=teacher", "eval.sampler=teacher", "train.global_batch=64", "engine.micro_batch=64"]
    return load_config("c-micro", [*words, *(f"teacher.{key}={value}" for key, value in text.items())])


def share(given: Config, sizes: Sizes) -> float:
    """Returns the text's share of a step's arithmetic."""
    text = sizes.text_flop(given.teacher)
    return text / (text + sizes.teacher.flop + 3 * sizes.student.flop)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("teacher", "rule", "whole", "bucketed"),
    [
        ("pixart-sigma", "depth-14", 0.47, 0.12),
        ("sd35-medium", "depth-12", 0.28, 0.28),  # 0.29 with the two CLIPs
        ("flux2-klein-4b", "depth-5+10", 0.096, 0.096),  # 0.12 with the 8 layers that nothing reads
    ],
)
def test_the_share_of_the_text_is_the_published_one(teacher: str, rule: str, whole: float, bucketed: float) -> None:
    given = config(teacher, rule)
    sizes = counted(given)
    assert share(config(teacher, rule, text_buckets="false"), sizes) == pytest.approx(whole, abs=0.005)
    assert share(given, sizes) == pytest.approx(bucketed, abs=0.005)


def test_clips_are_not_counted() -> None:
    given = load_config("c-micro", ["teacher.path=sd-v1-4"])
    assert counted(given).text_flop(given.teacher) == 0


@pytest.mark.heavy
def test_what_makes_text_encoders_cheaper_is_priced_and_proposed() -> None:
    plain = config("sd35-medium", "depth-12")
    sizes = counted(plain)
    whole = training_memory(plain, sizes, H200)
    vae = whole[TEXT] - 2 * sizes.text
    in_int8 = training_memory(config("sd35-medium", "depth-12", text_dtype="int8"), sizes, H200)
    away = training_memory(config("sd35-medium", "depth-12", text_device="cpu"), sizes, H200)
    assert in_int8[TEXT] - vae == pytest.approx(0.52 * 2 * sizes.text, rel=0.01)
    assert away[TEXT] - vae == 2 * sizes.text_layer < 0.03 * whole[TEXT]
    assert {key: value for key, value in away.items() if key != TEXT} == {
        key: value for key, value in whole.items() if key != TEXT
    }
    slower = step_seconds(config("sd35-medium", "depth-12", text_device="cpu"), sizes, H200, 0.25).whole
    faster = step_seconds(plain, sizes, H200, 0.25).whole
    assert slower - faster == pytest.approx(2 * sizes.text / HOST_LINK)
    needed = sum(whole.values()) / 1e9
    small = Cluster(replace(find_gpu("h200"), memory_gb=(needed - 3) / USABLE), 1, 1)
    proposed = [change for change, _ in ways_to_fit(plain, sizes, small)]
    assert {"teacher.text_device": "cpu"} in proposed and {"teacher.text_dtype": "int8"} in proposed
    of_clip = load_config("c-micro", ["teacher.path=sd-v1-4"])
    tiny = Cluster(replace(find_gpu("h200"), memory_gb=40), 1, 1)
    changes = ways_to_fit(of_clip, counted(of_clip), tiny)
    assert not any(key.startswith("teacher.text") for change, _ in changes for key in change)
