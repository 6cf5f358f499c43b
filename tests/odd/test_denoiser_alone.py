"""A hub id whose repository has a denoiser alone: the rest comes from its pipeline, by the hub's real client."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from randcond.model_zoo.checkpoints.denoiser_alone import REST
from randcond.model_zoo.checkpoints.layouts import HUB, LAYOUTS
from randcond.model_zoo.families.faults.look import teacher_faults
from randcond.model_zoo.families.registry import pipeline_of
from tests.support.flow_teachers import pixart
from tests.support.hub import hub_of
from tests.support.web import free_port

pytestmark = pytest.mark.heavy
DENOISER, PIPELINE = next(iter(REST.items()))
WEIGHTS = "diffusion_pytorch_model.safetensors"
LOOK = """
import sys
from randcond.model_zoo.checkpoints.hub import check_reachable, local_folder
from randcond.launch.runtime.exit_codes import exit_code
try:
    if sys.argv[1] == "ask":
        check_reachable(sys.argv[2])
    print(0, local_folder(sys.argv[2]))
except Exception as error:
    print(exit_code(error), error)
"""


def look(home: Path, *words: str, **environment: str) -> list[str]:
    """Returns the exit code and the folder, or the error, of processes that run at the same time: one per word."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOOK, word, DENOISER],
            env={**clean, "HF_HOME": str(home), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for word in words
    ]
    return [process.communicate()[0].strip().splitlines()[-1] for process in started]


def test_it_is_put_together_with_its_pipeline(tmp_path: Path) -> None:
    whole, other = pixart(tmp_path / "whole", seed=0), pixart(tmp_path / "other", seed=1)
    alone = Path(shutil.copytree(other / "transformer", tmp_path / "alone" / "transformer")).parent
    home = tmp_path / "home"
    with hub_of({DENOISER: alone, PIPELINE: whole}) as (hub, requests):
        found = look(home, "ask", "ask", HF_ENDPOINT=hub)  # two ranks
        assert found[0] == found[1] and found[0].startswith("0 "), found
        folder = Path(found[0][2:])
        assert not any(
            f"{PIPELINE}/resolve/" in each and "/transformer/" in each and WEIGHTS in each for each in requests
        )
        asked = len(requests)
        assert look(home, "load", HF_ENDPOINT=hub) == [found[0]]
        assert not any("GET" in each and ".safetensors" in each for each in requests[asked:])  # downloaded once
    assert list(folder.parent.iterdir()) == [folder]
    assert look(home, "load", HF_ENDPOINT=f"http://127.0.0.1:{free_port()}") == [found[0]]  # the hub is out of reach
    assert look(home, "load", HF_HUB_OFFLINE="1") == [found[0]]

    assert list(teacher_faults(folder)) == []
    pipeline, _ = pipeline_of(folder)
    pipe = pipeline.from_pretrained(folder)
    for part, source in (("transformer", other), ("vae", whole)):
        stored, loaded = load_file(source / part / WEIGHTS), getattr(pipe, part).state_dict()
        assert stored and all(stored[name].equal(loaded[name]) for name in stored), part

    shutil.rmtree(home / "hub")  # the links lead nowhere: the files are fetched again
    with hub_of({DENOISER: alone, PIPELINE: whole}) as (hub, _):
        assert look(home, "load", HF_ENDPOINT=hub) == [found[0]]
    assert (folder / "vae" / WEIGHTS).is_file()


def test_a_repository_that_became_whole_is_taken_as_it_is(tmp_path: Path) -> None:
    whole = pixart(tmp_path / "whole")
    with hub_of({DENOISER: whole}) as (hub, _):
        (found,) = look(tmp_path / "home", "ask", HF_ENDPOINT=hub)
    assert found.startswith("0 ") and json.loads((Path(found[2:]) / "model_index.json").read_text())
    assert not (tmp_path / "home" / "randcond").exists()


def test_what_the_hub_lacks_is_named(tmp_path: Path) -> None:
    alone = Path(shutil.copytree(pixart(tmp_path / "whole") / "transformer", tmp_path / "alone/transformer")).parent
    for models, named in (({DENOISER: alone}, PIPELINE), ({PIPELINE: tmp_path / "whole"}, DENOISER)):
        with hub_of(models) as (hub, _):
            (said,) = look(tmp_path / f"home of {named}", "load", HF_ENDPOINT=hub)
        assert said.startswith(f"2 {named}: {hub} has no such model"), said


def test_published_ones_have_a_layout() -> None:
    assert all(HUB[name] in LAYOUTS for pair in REST.items() for name in pair)
