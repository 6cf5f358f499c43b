"""From a checkpoint that people have to a student that stock diffusers draws with: three lines typed."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from randcond.model_zoo.teacher import Teacher
from tests.support import shaped, warm
from tests.support.demo import randcond
from tests.support.drawing import draw_elsewhere
from tests.support.ldm import one_file

README = Path(__file__).parents[2] / "README.md"
CAPTIONS = [f"a {size} {colour} {thing}" for size in ("small", "large") for colour in ("red", "green", "blue", "grey")
            for thing in ("cat", "dog", "tree", "car", "house", "boat")]  # fmt: skip
PIPELINES = {"sdxl": "StableDiffusionXLPipeline"}
Form = Callable[[Path, Path], Path]


def one_safetensors(folder: Path, out: Path) -> Path:
    save_file(one_file(Teacher.load(folder, "fp32").pipe), out.with_suffix(".safetensors"))
    return out.with_suffix(".safetensors")


def one_ckpt(folder: Path, out: Path) -> Path:
    tensors = load_file(one_safetensors(folder, out))
    torch.save({"state_dict": tensors}, out.with_suffix(".ckpt"))
    return out.with_suffix(".ckpt")


def fp16_shards(folder: Path, out: Path) -> Path:
    pipe = Teacher.load(folder, "fp32").pipe.to(torch.float16)
    pipe.save_pretrained(out, variant="fp16", max_shard_size="200KB")
    return out


def three_lines(layout: str, form: Form, flags: list[str], folder: Path, hours: str) -> tuple[float, float]:
    """Imports a checkpoint, writes an experiment and runs it; stock diffusers draws an image with the student.

    The teachers are tiny, so `--config` describes their sizes. Files of the published sizes need no such folder.
    Returns the seconds, and the standard deviation of the image.
    """
    original = shaped.build(layout, folder / "original")
    shutil.copytree(original, folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    source = form(original, folder / "model")
    (folder / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    started = time.monotonic()
    lines = [
        ["teacher", "import", source.name, "teacher", *flags],
        ["init", "mine.yaml", "--teacher", "teacher", "--captions", "captions.txt", "--hours", hours],
        ["run", "all", "mine.yaml"],
    ]
    for words in lines:
        randcond(folder, *words)
    seconds = time.monotonic() - started
    load_as_the_readme_says(folder)
    student = folder / "runs/mine/run/student_ema"
    image = draw_elsewhere(student, folder / "image.npy", PIPELINES.get(layout, "StableDiffusionPipeline"))
    assert image.shape == (1, 128, 128, 3) and image.std() > 0
    assert (folder / "runs/mine/run/report.html").is_file()
    return seconds, float(image.std())


def load_as_the_readme_says(folder: Path) -> None:
    """Runs the README's Python beside a finished run."""
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    done = warm.run([warm.Command("-c", [code], folder)])[0]
    assert done.returncode == 0, done.stderr
    assert (folder / "cat.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "form", "flags"),
    [
        ("sd-v1-4", one_safetensors, ["--config", "config"]),
        ("sd-v1-4", one_ckpt, ["--config", "config"]),
        ("sd-v1-4", fp16_shards, []),
        ("sd-v2-1", one_safetensors, ["--config", "config", "--prediction", "v_prediction"]),
        ("sdxl", one_safetensors, ["--config", "config"]),
    ],
)
def test_three_lines_make_a_student_of_it(
    layout: str, form: Form, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user types them. `--hours` is as small as a slow machine allows."""
    seconds, spread = three_lines(layout, form, flags, tmp_path, "0.05")
    with capsys.disabled():
        print(f"\n{layout}, {form.__name__}: 3 lines typed, {seconds:.0f} s, {spread:.3f}")
