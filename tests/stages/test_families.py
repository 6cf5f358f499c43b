"""Every family goes the whole road: pool, cache, training on two ranks, kill -9, evaluation, stock diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

from randcond.model_zoo.teacher import Teacher
from tests.support import flow_teachers, warm
from tests.support.demo import randcond
from tests.support.interruptions import ranks, wait_for
from tests.support.runs import metrics, same_bits

MAKERS = {"sd3": flow_teachers.sd3, "pixart": flow_teachers.pixart}
TRAIN = ["train.steps=6", "train.checkpoint_every=2", "train.log_every=1"]


def experiment(folder: Path, flow: bool) -> dict[str, Any]:
    """Returns the experiment's YAML for a tiny teacher in `folder`."""
    sampler = {"sampler": "teacher"} if flow else {}
    return {
        "teacher": {"path": "teacher", "dtype": "fp32", "text_tokens": 16},
        "student": {"rule": "depth-3"},
        "cache": {"captions": ["captions.txt"], "size": 32, "batch": 8, "shard_size": 16, "steps": 2, **sampler},
        "pool": {"sources": ["captions.txt"]},
        "conditioning": {"of": "sigma"},
        "train": {"global_batch": 8, "workers": 0, "sample_every": 0, "lr": 1e-3},
        "engine": {"precision": "fp32", "processes": 2, "threads": 1},
        "eval": {"captions": ["captions.txt"], "size": 4, "metrics": [], "steps": 2, "protocol": "native", **sampler},
        "paths": {"run": "runs/run", "cache": "runs/cache", "pool": "runs/pool", "reference": "runs/teacher"},
    }


@pytest.fixture(scope="module", params=["sd3", pytest.param("pixart", marks=pytest.mark.slow)])
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder where a tiny teacher's latents are drawn and a student is trained on two ranks (ZeRO-1)."""
    folder = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param](folder / "teacher")
    words = [
        f"{colour} {thing}" for colour in ("red", "blue", "green", "a") for thing in ("cat", "dog", "table", "one")
    ]
    (folder / "captions.txt").write_text("".join(f"{word} on the {word}\nphoto of {word}\n" for word in words))
    (folder / "mine.yaml").write_text(yaml.safe_dump(experiment(folder, flow=request.param == "sd3")))
    for stage in ("pool", "cache", "train"):
        randcond(folder, "run", stage, "mine.yaml", *(TRAIN if stage == "train" else []))
    return folder


def test_killed_on_any_engine_it_resumes_to_the_same_student(road: Path) -> None:
    for engine in ([], ["engine.kind=fsdp"]):
        name = "runs/killed" + "-fsdp" * bool(engine)
        words = ["run", "train", "mine.yaml", *TRAIN, *engine, f"paths.run={name}"]
        process = warm.Process(warm.Command("randcond.launch.cli", [*words, "train.steps=200"], road))
        wait_for(lambda name=name: (road / name / "checkpoints/step-00000002").is_dir(), process)
        for each in [*ranks(process), process]:
            each.kill()
        process.wait()
        newest = max(int(path.name[5:]) for path in (road / name / "checkpoints").glob("step-*"))
        words = [*words, f"train.steps={max(6, newest)}"]
        said = randcond(road, *words).stdout
        assert "resuming from step" in said or newest == 0


def test_one_rank_trains_as_two(road: Path) -> None:
    randcond(road, "run", "train", "mine.yaml", *TRAIN, "--gpus", "1", "paths.run=runs/alone")
    both, alone = metrics(road / "runs/run"), metrics(road / "runs/alone")
    for ours, theirs in zip(alone, both, strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-4)
        assert ours["replaced_share"] == theirs["replaced_share"]


def test_fsdp_trains_as_zero(road: Path) -> None:
    randcond(road, "run", "train", "mine.yaml", *TRAIN, "engine.kind=fsdp", "paths.run=runs/fsdp")
    for ours, theirs in zip(metrics(road / "runs/fsdp"), metrics(road / "runs/run"), strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-4)


def test_stopped_and_resumed_it_is_the_same_student(road: Path) -> None:
    words = ["run", "train", "mine.yaml", *TRAIN, "paths.run=runs/cut"]
    randcond(road, *words, "train.steps=4")
    assert "resuming from step 4" in randcond(road, *words).stdout
    assert same_bits(road / "runs/run", road / "runs/cut")


@torch.no_grad()
def test_stock_diffusers_draws_what_we_draw(road: Path) -> None:
    randcond(road, "run", "eval", "mine.yaml", *TRAIN)
    assert (road / "runs/run/eval-raw/scores.json").is_file()
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", "max_sequence_length": 16}
    stock = DiffusionPipeline.from_pretrained(road / "runs/run/student")
    if "PixArt" in type(stock).__name__:
        settings |= {"use_resolution_binning": False, "clean_caption": False}
    teacher = Teacher.load(road / "teacher", "fp32", text_tokens=16)
    own = teacher.pipeline("teacher", stock.transformer)
    images = []
    for pipe in (stock, own):
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe("a red cat", generator=torch.Generator().manual_seed(0), **settings).images)
    assert np.abs(images[0] - images[1]).max() < 1e-5
    random = teacher.pipeline("teacher")("a red cat", generator=torch.Generator().manual_seed(0), **settings).images
    assert np.abs(images[0] - random).max() > 1e-4  # the student is not its teacher
