"""Odd sizes for `randcond eval stats`: values that are none, images that are not resized, batches of large images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from randcond.eval.scores import real_images
from randcond.eval.scores.real_images import statistics_of_folder
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from tests.odd.image_formats import SMOOTH
from tests.support import warm
from tests.support.networks import dino_folder
from tests.support.odd_images import saved


@pytest.mark.parametrize("size", ["-1", "2049", "100000000000", "1.5", "large"])
def test_a_size_that_is_none_is_an_error(tmp_path: Path, size: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(saved(SMOOTH, "PNG"))
    words = ["eval", "stats", "in", "out", "metrics=[fd-dinov2]", "--size", size]
    (done,) = warm.run([warm.Command("randcond.launch.cli", words, tmp_path)])
    assert done.returncode == 2 and "--size" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def statistics(folder: Path, out: Path, **settings: bool | str) -> tuple[int, np.ndarray]:
    """Returns the number of images, and the mean of their features."""
    ev = Eval(dino=str(dino_folder(folder.parent / "dino")), metrics=["fd-dinov2"], batch=4)
    ((path, count),) = statistics_of_folder(folder, out, ev, None, None, **{"jpeg": True, **settings}).items()  # type: ignore[arg-type]
    with np.load(path) as arrays:
        return count, arrays["mu"]


def test_images_of_any_size_are_not_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are divided because their images are large give the same features, in the same order."""
    (tmp_path / "in").mkdir()
    for number in range(7):
        pixels = SMOOTH[: 20 + 4 * (number // 4)] // (number + 1)
        (tmp_path / f"in/{number}.png").write_bytes(saved(pixels, "PNG"))
    (tmp_path / "in/3.png").write_bytes(b"no image")
    count, mean = statistics(tmp_path / "in", tmp_path / "out", on_error="skip")
    monkeypatch.setattr(real_images, "LARGEST_BATCH", 1)
    divided, mean_divided = statistics(tmp_path / "in", tmp_path / "divided", on_error="skip")
    assert count == divided == 6 and np.allclose(mean, mean_divided, atol=1e-5)
    chunks = [
        real_images._load_chunk(tmp_path / out / "features/chunk-00000.safetensors") for out in ("out", "divided")
    ]
    assert chunks[0].rows.tolist() == chunks[1].rows.tolist() == [0, 1, 2, 4, 5, 6]
    assert torch.allclose(chunks[0].features["dino"], chunks[1].features["dino"], atol=1e-5)


def test_an_image_that_is_too_long_for_jpeg_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (65_501, 1)).save(tmp_path / "in/long.png")
    for number in range(2):
        (tmp_path / f"in/{number}.png").write_bytes(saved(SMOOTH, "PNG"))
    with pytest.raises(UserError, match=r"image .*long\.png: is too large for JPEG: 65,501 x 1 pixels, at most 65,500"):
        statistics(tmp_path / "in", tmp_path / "out")
    assert statistics(tmp_path / "in", tmp_path / "skipped", on_error="skip")[0] == 2
    assert statistics(tmp_path / "in", tmp_path / "png", jpeg=False)[0] == 3
