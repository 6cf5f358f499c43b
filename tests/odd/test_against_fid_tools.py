"""The same folders of images through our statistics, pytorch-fid's and torch-fidelity's own readers and commands.

Where all agree on what the images are, pixels, statistics and FID are equal. Where not, the difference is asserted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid.fid_score import IMAGE_EXTENSIONS, ImagePathDataset
from pytorch_fid.inception import FID_WEIGHTS_URL
from torch import Tensor
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.utils import glob_samples_paths
from torchvision.transforms import ToTensor

from randcond.data.images.find import find_images
from randcond.eval.scores.moments import Moments, frechet_distance
from randcond.eval.scores.real_images import read_real, statistics_of_folder
from randcond.launch.config.sections import Eval
from tests.support.networks import digit_images, inception_weights, save_pictures
from tests.support.odd_images import colours, greys, saved, smooth, turned

COLOURS, GREYS, SMOOTH = colours(), greys(), smooth()


def ours(path: Path) -> Tensor:
    return read_real(path, None, jpeg=False)


def pytorch_fids(path: Path) -> Tensor:
    """The pixels that pytorch-fid gives its network, times 255."""
    return (ImagePathDataset([path], transforms=ToTensor())[0] * 255).round().byte()


def torch_fidelitys(path: Path) -> Tensor:
    return ImagesPathDataset([str(path)])[0]


AGREED = {  # images on which all three readers agree
    "rgb.png": saved(COLOURS, "PNG"),
    "grey.png": saved(GREYS, "PNG"),
    "palette.png": saved(Image.fromarray(COLOURS).quantize(40), "PNG"),
    "two.png": saved(GREYS > 100, "PNG"),
    "opaque.png": saved(COLOURS, "PNG", mode="RGBA"),
    "photo.jpg": saved(SMOOTH, "JPEG"),
    "grey.jpeg": saved(SMOOTH[..., 0], "JPEG"),
    "cmyk.jpg": saved(SMOOTH, "JPEG", mode="CMYK"),
    "photo.webp": saved(SMOOTH, "WEBP"),
    "rgb.bmp": saved(COLOURS, "BMP"),
    "rgb.tif": saved(COLOURS, "TIFF"),
    "rgb.ppm": saved(COLOURS, "PPM"),
    "turned.tif": turned("TIFF", 6),
}


@pytest.mark.parametrize("name", AGREED)
def test_all_read_the_same_pixels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(AGREED[name])
    assert torch.equal(ours(path), pytorch_fids(path)) and torch.equal(ours(path), torch_fidelitys(path))


def test_they_do_not_turn_photographs(tmp_path: Path) -> None:
    """Both tools ignore EXIF's orientation, so that a portrait lies on its side; we show it as viewers do."""
    path = tmp_path / "a.png"
    path.write_bytes(turned("PNG", 6))
    assert torch.equal(pytorch_fids(path), torch_fidelitys(path))
    assert torch.equal(ours(path), pytorch_fids(path).rot90(-1, dims=(1, 2)))


def test_they_show_the_colours_under_transparent_pixels(tmp_path: Path) -> None:
    """Both tools drop the alpha channel, so that invisible colours count; we compose on white."""
    path = tmp_path / "a.png"
    alpha = np.where(np.arange(48).reshape(6, 8, 1) % 3, 255, 0).astype(np.uint8)
    path.write_bytes(saved(np.concatenate([COLOURS, alpha], axis=-1), "PNG"))
    theirs = pytorch_fids(path)
    assert torch.equal(theirs, torch_fidelitys(path)) and np.array_equal(theirs.permute(1, 2, 0).numpy(), COLOURS)
    visible = torch.from_numpy(alpha[..., 0] > 0)
    assert torch.equal(ours(path)[:, visible], theirs[:, visible]) and (ours(path)[:, ~visible] == 255).all()


def test_they_read_16_bit_greyscale_as_almost_white(tmp_path: Path) -> None:
    """Pillow's conversion, which both tools use, clips 16-bit values at 255; we scale them to 0..255."""
    path = tmp_path / "a.png"
    path.write_bytes(saved(GREYS.astype(np.uint16) * 257, "PNG"))
    theirs = pytorch_fids(path)
    assert torch.equal(theirs, torch_fidelitys(path))
    assert np.array_equal(ours(path)[0].numpy(), GREYS)
    assert (theirs == 255).float().mean() > 0.9


def test_they_read_floats_from_0_to_1_as_black(tmp_path: Path) -> None:
    """Pillow's conversion cuts the fraction off, so that both tools see black; we multiply by 255."""
    path = tmp_path / "a.tif"
    path.write_bytes(saved((GREYS / 255).astype(np.float32), "TIFF"))
    theirs = pytorch_fids(path)
    assert torch.equal(theirs, torch_fidelitys(path)) and (theirs <= 1).all()
    assert np.array_equal(ours(path)[0].numpy(), GREYS)


def test_they_pass_files_over_without_a_word(tmp_path: Path) -> None:
    """pytorch-fid knows 9 suffixes in lower case, torch-fidelity 3; neither subfolders; hidden files count."""
    below = tmp_path / "below"
    below.mkdir()
    names = ["a.png", "b.PNG", "c.webp", "d.gif", "e.jp2", "f.bmp", "below/g.png", ".h.png"]
    for name in names:
        (tmp_path / name).write_bytes(saved(COLOURS, "PNG"))  # all three go by content
    pytorch_fid = sorted(file.name for kind in IMAGE_EXTENSIONS for file in tmp_path.glob(f"*.{kind}"))
    find, lossy = DEFAULTS["samples_find_ext"], DEFAULTS["samples_ext_lossy"]
    fidelity = [Path(file).name for file in glob_samples_paths(str(tmp_path), False, find, lossy, verbose=False)]
    found = find_images(tmp_path)
    assert pytorch_fid == [".h.png", "a.png", "c.webp", "f.bmp"]
    assert fidelity == [".h.png", "a.png", "b.PNG"]
    assert [str(path.relative_to(tmp_path)) for path in found.images] == sorted(set(names) - {".h.png"})
    assert found.passed_over == {"hidden": 1}


@pytest.mark.slow
def test_statistics_and_fid_are_those_of_their_commands(tmp_path: Path) -> None:
    """Two folders of png, jpg and jpeg files: mu and sigma as pytorch-fid writes them, FID as torch-fidelity prints it.

    The same local random weights stand in for Inception's.
    """
    weights = inception_weights(tmp_path / "inception.pth", digit_images(8, seed=9))
    for name, images in (("one", 255 - digit_images(12, 64, seed=1) // 2), ("other", digit_images(12, 64, seed=2))):
        for number, kind in enumerate(("png", "jpg", "jpeg")):
            save_pictures(tmp_path / name / kind, images[number::3], kind)
        for path in [*(tmp_path / name).glob("*/*")]:
            path.rename(tmp_path / name / f"{path.stem}{path.suffix}")
    for folder in [*tmp_path.glob("*/*")]:
        if folder.is_dir():
            folder.rmdir()
    hub = tmp_path / "torch/hub/checkpoints" / Path(FID_WEIGHTS_URL).name
    hub.parent.mkdir(parents=True)
    hub.symlink_to(weights)
    environment = {**os.environ, "TORCH_HOME": str(tmp_path / "torch"), "OMP_NUM_THREADS": "1"}

    def tool(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    common = ["--device", "cpu", "--num-workers", "0", "--batch-size", "12"]
    tool("pytorch_fid", "--save-stats", *common, "one", "one.npz")
    flags = ["--cpu", "--fid", "--json", "--no-cache", "--save-cpu-ram", "--batch-size", "12"]
    extractor = ["--feature-extractor", "inception-v3-compat", "--feature-extractor-weights-path", str(weights)]
    printed = tool("torch_fidelity.fidelity", *flags, *extractor, "--input1", "one", "--input2", "other")
    fid = json.loads(printed[printed.index("{") :])["frechet_inception_distance"]

    ev = Eval(inception=str(weights), metrics=["fid"], fid="pytorch-fid", batch=12)
    statistics_of_folder(tmp_path / "one", tmp_path / "stats", ev, None, None, jpeg=False)
    with np.load(tmp_path / "stats/all.npz") as mine, np.load(tmp_path / "one.npz") as theirs:
        assert np.allclose(mine["mu"], theirs["mu"], rtol=1e-4, atol=1e-5)
        assert np.allclose(mine["sigma"], theirs["sigma"], rtol=1e-3, atol=1e-5)
    ev = Eval(inception=str(weights), metrics=["fid"], batch=12)
    moments = []
    for name in ("one", "other"):
        statistics_of_folder(tmp_path / name, tmp_path / f"{name}-stats", ev, None, None, jpeg=False)
        with np.load(tmp_path / f"{name}-stats/all.npz") as arrays:
            moments.append(Moments(12, arrays["mu"], arrays["sigma"]))
    assert frechet_distance(*moments) == pytest.approx(fid, rel=1e-3)
