"""From a checkpoint that people have to a student that stock diffusers draws with: three lines typed."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from randcond.model_zoo.teacher import Teacher
from tests.support import shaped
from tests.support.demo import randcond
from tests.support.drawing import draw_elsewhere
from tests.support.ldm import one_file

CAPTIONS = [f"a {size} {colour} {thing}" for size in ("small", "large") for colour in ("red", "green", "blue", "grey")
            for thing in ("cat", "dog", "tree", "car", "house", "boat")]  # fmt: skip
PIPELINES = {"sdxl": "StableDiffusionXLPipeline"}


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


@pytest.mark.parametrize(
    ("layout", "form", "flags"),
    [
        ("sd-v1-4", one_safetensors, ["--config", "config"]),
        pytest.param("sd-v1-4", one_ckpt, ["--config", "config"], marks=pytest.mark.slow),
        pytest.param("sd-v1-4", fp16_shards, [], marks=pytest.mark.slow),
        pytest.param(
            "sd-v2-1", one_safetensors, ["--config", "config", "--prediction", "v_prediction"], marks=pytest.mark.slow
        ),
        pytest.param("sdxl", one_safetensors, ["--config", "config"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.heavy
def test_a_checkpoint_becomes_a_student(
    layout: str, form: object, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teachers are tiny, so `--config` describes their sizes. Files of the published sizes need no such folder."""
    original = shaped.build(layout, tmp_path / "original")
    shutil.copytree(original, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    source = form(original, tmp_path / "model")  # type: ignore[operator]
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    started = time.monotonic()
    lines = [
        ["teacher", "import", source.name, "teacher", *flags],
        ["init", "mine.yaml", "--teacher", "teacher", "--captions", "captions.txt", "--hours", "0.03"],
        ["run", "all", "mine.yaml"],
    ]
    for words in lines:
        randcond(tmp_path, *words)
    seconds = time.monotonic() - started
    student = tmp_path / "runs/mine/run/student_ema"
    image = draw_elsewhere(student, tmp_path / "image.npy", PIPELINES.get(layout, "StableDiffusionPipeline"))
    assert image.shape == (1, 128, 128, 3) and image.std() > 0
    assert (tmp_path / "runs/mine/run/report.html").is_file()
    with capsys.disabled():
        print(f"\n{layout}, {source.name}: {len(lines)} lines typed, {seconds:.0f} s, {image.std():.3f}")
