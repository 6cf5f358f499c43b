"""A hub that refuses, is out of reach or switched off: named as what it is, within seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import get_hf_file_metadata

from randcond.model_zoo.checkpoints.hub_files import hub_failure
from tests.support.flow_teachers import sd3
from tests.support.hub import REFUSALS, hub_of, small_hub
from tests.support.web import free_port

LOOK = """
import sys
from randcond.launch.runtime.exit_codes import exit_code
from randcond.model_zoo.checkpoints.hub_files import hub_file
for name in sys.argv[1:]:
    try:
        print(0, hub_file(name, "model_index.json"))
    except Exception as error:
        print(exit_code(error), error)
"""
SAID = {  # model -> exit code, and what is said without a token and with one
    "owner/gated": (2, "gated (403): open HUB/owner/gated, accept its conditions with your account", "your token"),
    "owner/gated-401": (2, "gated (401): open HUB/owner/gated-401", "accept its conditions with the account of your"),
    "owner/private": (2, "HUB has no such model, or it is private, and HF_TOKEN is not set (401)", "not accept your"),
    "owner/none": (2, "HUB has no such model, or it is private", "or your token may not read it (404)"),
    "owner/bad-token": (2, "does not accept your token (401)", "HUB does not accept your token (401)"),
    "owner/forbidden": (2, "refuses access (403: Your token lacks the right", "refuses access (403"),
    "owner/no-config": (2, "HUB has it, but without model_index.json", "without model_index.json"),
    "owner/ name": (2, "owner/ name: no hub id; expected OWNER/NAME", "no hub id"),
}


def look(home: Path, names: list[str], **environment: str) -> list[str]:
    """Returns a line per model: the exit code and the error, or 0 and the file."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", LOOK, *names]
    done = subprocess.run(
        command, env={**clean, "HF_HOME": str(home), **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.heavy
def test_a_refusal_of_the_hub_says_why(tmp_path: Path) -> None:
    assert {*REFUSALS, "owner/ name"} == {*SAID, "owner/busy"}
    with small_hub() as (hub, _):
        for number, token in enumerate(({}, {"HF_TOKEN": "hf_planted"})):
            lines = look(tmp_path, list(SAID), HF_ENDPOINT=hub, **token)
            for line, (name, (code, *said)) in zip(lines, SAID.items(), strict=True):
                assert line.startswith(f"{code} {name}: ") and said[number].replace("HUB", hub) in line, line
                assert "hf_planted" not in line


def test_a_busy_hub_is_asked_again_and_named() -> None:
    with small_hub() as (hub, _), pytest.raises(OSError) as raised:
        get_hf_file_metadata(f"{hub}/owner/busy/resolve/main/model_index.json")
    failure = hub_failure("owner/busy", raised.value)
    assert isinstance(failure, ConnectionError) and "is busy or out of order (503)" in str(failure)


@pytest.mark.heavy
def test_a_hub_that_is_out_of_reach_or_switched_off(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    (line,) = look(tmp_path, ["owner/model"], HF_ENDPOINT=nobody)
    assert line.startswith(f"69 owner/model: can't reach {nobody} (") and "https_proxy and HF_ENDPOINT" in line
    (line,) = look(tmp_path, ["owner/model"], HF_ENDPOINT=nobody, HF_HUB_OFFLINE="1")
    assert line.startswith("2 owner/model: not in the hub's cache (") and "HF_HUB_OFFLINE is set; unset it" in line
    with small_hub() as (hub, _):
        (line,) = look(tmp_path, ["owner/model"], HF_ENDPOINT=hub)
        assert line.startswith("0 ")
    for further in ({}, {"HF_HUB_OFFLINE": "1"}):  # what is in the cache needs no hub
        assert look(tmp_path, ["owner/model"], HF_ENDPOINT=nobody, **further) == [line]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with small_hub() as (hub, _):
        (line,) = look(blocked / "home", ["owner/model"], HF_ENDPOINT=hub)
    assert line.startswith("2 ") and "Traceback" not in line


CHECK = """
import sys
from randcond.data.__main__ import check_cache
from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError
for word in sys.argv[1:]:
    try:
        check_cache(load_config("demo-flow-with", ["teacher.path=me/my-sd3", "cache.resolution=32", word]))
        print("passed")
    except UserError as error:
        print(error)
"""


@pytest.mark.heavy
def test_settings_are_checked_against_the_configurations_of_any_hub_id(tmp_path: Path) -> None:
    """Before anything large is downloaded: only configurations are asked for."""
    words = ["cache.sampler=ddim", "teacher.text_buckets=true", "cache.resolution=77", "teacher.text_tokens=9999"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with hub_of({"me/my-sd3": sd3(tmp_path / "sd3")}) as (hub, requests):
        done = subprocess.run(
            [sys.executable, "-c", CHECK, "cache.seed=1", *words],
            env={**clean, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub},
            capture_output=True,
            text=True,
            check=True,
        )
    assert not any("safetensors" in each for each in requests)
    passed, *said = done.stdout.splitlines()
    assert passed == "passed", done.stdout
    for line, start in zip(
        said,
        [
            "cache.sampler: ddim is for discrete betas",
            "teacher.text_buckets: me/my-sd3 does not mask its text",
            "cache.resolution: is 77, expected a multiple of",
            "teacher.text_tokens: is 9999, expected 1 to 512",
        ],
        strict=True,
    ):
        assert line.startswith(start), line
