"""Students and the embedded teacher load and draw in diffusers 0.35 and transformers 4.57, and draw the same there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from randcond.launch.config.paths import PACKAGE
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.export import export_student
from randcond.model_zoo.students.registry import build_student
from randcond.model_zoo.teacher import Teacher
from tests.support import older, shaped
from tests.support.drawing import draw_here

pytestmark = pytest.mark.slow

DRAW = """
import json, sys, numpy, torch, diffusers, transformers
from diffusers import DiffusionPipeline
print(json.dumps([diffusers.__version__, transformers.__version__]))
torch.set_num_threads(int(sys.argv[1]))
for folder in sys.argv[2:]:
    pipe = DiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    numpy.save(folder + ".npy", pipe("a red two", num_inference_steps=3, output_type="np", generator=generator).images)
assert not [name for name in sys.modules if name.startswith("randcond")]
"""


def test_they_draw_the_same_in_older_libraries(tmp_path: Path) -> None:
    folders = [tmp_path / "embedded"]
    folders[0].symlink_to(PACKAGE / "data/digits/models/teacher")
    for layout in ("sd-v1-4", "sd-v2-1", "sdxl"):
        teacher = Teacher.load(shaped.build(layout, tmp_path / f"teacher-{layout}"), "fp32")
        unet = build_student("block-base", Architecture.of(teacher.denoiser), 0, teacher.stored_denoiser()).eval()
        export_student(tmp_path / layout, unet, teacher.folder, "a card")
        folders.append(tmp_path / layout)
    command = [sys.executable, "-W", "ignore", "-c", DRAW, str(torch.get_num_threads()), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=older.environment())
    assert done.returncode == 0, done.stderr
    assert [version[:4] for version in json.loads(done.stdout)] == ["0.35", "4.57"]
    unwanted = ("newly initialized", "not expected", "not used", "ignored")
    assert not [line for line in done.stderr.splitlines() if any(words in line for words in unwanted)]
    for folder in folders:
        there, here = np.load(f"{folder}.npy"), draw_here(DiffusionPipeline.from_pretrained(folder))
        assert np.abs(there - here).max() < 1 / 255 and here.std() > 0, folder
