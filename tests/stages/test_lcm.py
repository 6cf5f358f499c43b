"""A student is handed over to consistency distillation and scored in few steps (docs/lcm.md)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from diffusers import LCMScheduler, StableDiffusionPipeline

from randcond.launch.config.experiments import load_config
from randcond.launch.config.protocols import protocol_of
from tests.support.consistency import distil
from tests.support.demo import TINY, randcond

IMAGES = """
base: digits
teacher: {path: MODEL}
eval:
  {of: [teacher], captions: ["package:data/digits/captions.txt"], size: COUNT, batch: 25, save: shards, metrics: [],
   cost: false}
paths: {reference: images}
"""
LCM = """
base: digits
teacher: {path: MODEL}
eval: {of: [teacher], size: COUNT, batch: 25, sampler: lcm, steps: 2, guidance: 3.0, cost: false}
paths: {reference: scores}
"""


def write(path: Path, text: str, model: str, count: int) -> str:
    path.write_text(text.replace("MODEL", model).replace("COUNT", str(count)))
    return path.name


def scores(folder: Path, model: str, count: int, *words: str) -> dict[str, Any]:
    """Returns the scores of a model that draws in two steps of LCM's sampler."""
    name = Path(model).name
    yaml = write(folder / "lcm.yaml", LCM, model, count)
    randcond(folder, "run", "eval", yaml, f"paths.reference={name}-scores", *words)
    return json.loads((folder / f"{name}-scores" / "scores.json").read_text())


def handed_over(folder: Path, student: Path, images: str, count: int, steps: int) -> Path:
    """Draws images, distils the student on them; returns the folder of the result."""
    yaml = write(folder / "images.yaml", IMAGES, images, count)
    randcond(folder, "run", "eval", yaml, *(["eval.steps=2"] if steps < 10 else ["eval.steps=15"]))
    shards = sorted((folder / "images" / "images").glob("images-*.tar"))
    assert len(shards) == count // 25
    return distil(student, shards, folder / "few", steps)


@pytest.mark.slow
def test_an_exported_student_becomes_a_model_of_few_steps(tmp_path: Path) -> None:
    for stage in ("pool", "cache", "train"):
        randcond(tmp_path, "run", stage, "demo-with", *TINY, "train.steps=4")
    student = tmp_path / "runs/demo/with/student_ema"
    few = handed_over(tmp_path, student, "package:data/digits/models/teacher", 50, steps=2)
    found = scores(tmp_path, str(few), 10)
    protocol = found["protocol"]
    assert (protocol["sampler"], protocol["steps"], protocol["guidance"]) == ("lcm", 2, 3.0)
    pipe = StableDiffusionPipeline.from_pretrained(few)
    assert isinstance(pipe.scheduler, LCMScheduler) and pipe.unet.config.time_cond_proj_dim == 256
    assert pipe("a red three on black", num_inference_steps=1, guidance_scale=3.0).images[0].size == (32, 32)
    found = scores(tmp_path, str(few), 10, "eval.protocol=lcm", "eval.metrics=[]", "paths.reference=paper-like")
    report = json.loads((tmp_path / "paper-like" / "scores.json").read_text())["protocol"]
    assert (report["protocol"], report["images"]) == ("lcm", "JPEG, resize to 256, JPEG")


@pytest.mark.slow
def test_distilled_it_draws_better_in_two_steps(tmp_path: Path) -> None:
    """The table of docs/lcm.md: a digits teacher, 400 images, 150 steps."""
    teacher = "package:data/digits/models/teacher"
    folder = Path(__file__).parents[2] / "data/digits/models/teacher"
    few = handed_over(tmp_path, folder, teacher, 400, steps=150)
    before, after = (scores(tmp_path, model, 100)["splits"]["all"] for model in (str(folder), str(few)))
    print("\nas it is", before, "\ndistilled", after)
    assert after["frechet_judge"] < 0.7 * before["frechet_judge"]
    assert after["colour_accuracy"] > before["colour_accuracy"]


def test_the_pages_experiments_are_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/lcm.md").read_text()
    protocols = []
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        protocols.append(protocol_of(load_config(str(path)).eval))
    assert [(each.name, each.sampler, each.steps) for each in protocols] == [("native", "ddim", 25), ("lcm", "lcm", 4)]
