"""HPSv2.1, PickScore, ImageReward and CMMD equal their packages' own calls; bad weights are named."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import pytest
import torch
from imscore.hps.model import HPSv2, ResizeMaxSize
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import Normalize
from transformers import BertTokenizer, CLIPModel, CLIPProcessor

from randcond.eval.checks import to_download
from randcond.eval.features.load import check_weights, load_extractors
from randcond.eval.images.protocol_images import to_picture
from randcond.eval.scores.mmd import Mmd
from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from tests.support.networks import (
    bert_folder,
    clip_folder,
    digit_images,
    imagereward_weights,
    pickscore_folder,
    small_imagereward,
)

IMAGES = 200
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return digit_images(IMAGES)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return [f"a {['red', 'green', 'blue'][n % 3]} {n} on {['black', 'white'][n % 2]}" for n in range(IMAGES)]


def read(name: str, ev: Eval, images: Tensor, captions: list[str]) -> Tensor:
    """Returns the feature of an extractor with one feature, in batches of 32."""
    extractor = load_extractors([name], ev, "cpu")[name]
    parts = [
        extractor.read(images[start : start + 32], captions[start : start + 32]) for start in range(0, len(images), 32)
    ]
    return torch.cat([next(iter(part.values())) for part in parts])


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-4  # they differ between images
    assert torch.allclose(ours, theirs.float(), rtol=0, atol=1e-5), (ours - theirs).abs().max()


def test_hps_is_imscores(images: Tensor, captions: list[str], tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", output_dict=True)
    with patch("imscore.hps.model.create_model_and_transforms", return_value=(model, None, None)):
        theirs = HPSv2().eval()
    theirs.resize, settings = ResizeMaxSize(32), model.visual.preprocess_cfg
    theirs.normalize = Normalize(settings["mean"], settings["std"])
    with torch.no_grad():
        expected = theirs.score(images / 255, captions)
    assert_same(read("hps", Eval(hps=f"local-dir:{folder}"), images, captions), expected)


@pytest.mark.parametrize("kind", ["imscore", "own", "damaged"])
def test_weights_of_hps_come_in_two_forms(kind: str, tmp_path: Path, images: Tensor, captions: list[str]) -> None:
    folder = clip_folder(tmp_path / "clip")
    tensors = load_file(folder / "open_clip_model.safetensors")
    path = tmp_path / ("hps.pt" if kind == "own" else "hps.safetensors")
    if kind == "own":
        torch.save({"epoch": 1, "state_dict": tensors}, path)
    else:
        save_file({f"model.{name}": tensor for name, tensor in list(tensors.items())[kind == "damaged" :]}, path)
    small = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    with patch("open_clip.create_model_and_transforms", return_value=small):
        if kind == "damaged":
            with pytest.raises(UserError, match=r"eval\.hps: .*hps\.safetensors: does not hold the weights of ViT"):
                read("hps", Eval(hps=str(path)), images, captions)
            return
        found = read("hps", Eval(hps=str(path)), images[:40], captions[:40])
    assert torch.equal(found, read("hps", Eval(hps=f"local-dir:{folder}"), images[:40], captions[:40]))


@pytest.mark.parametrize("side", [32, 48])
def test_pickscore_is_the_model_cards(side: int, captions: list[str], tmp_path: Path) -> None:
    images, folder = digit_images(IMAGES, side), pickscore_folder(tmp_path / "pickscore")
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder, backend="pil")
    expected = []
    with torch.no_grad():
        for image, caption in zip(images, captions, strict=True):  # as its authors call it: image by image
            texts = {"padding": True, "truncation": True, "max_length": 77}
            inputs = processor(text=[caption], images=[to_picture(image)], return_tensors="pt", text_kwargs=texts)
            expected.append(model(**inputs).logits_per_image[0, 0])
    assert_same(read("pickscore", Eval(pickscore=str(folder)), images, captions), torch.stack(expected))


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_imagereward_is_imscores(kind: str, images: Tensor, captions: list[str], tmp_path: Path) -> None:
    bert = bert_folder(tmp_path / "bert", " ".join(captions))
    tokenizer = BertTokenizer(vocab=str(bert / "vocab.txt"))
    path = imagereward_weights(tmp_path / f"reward.{kind}", len(tokenizer) + 2)
    torch.manual_seed(0)
    theirs = small_imagereward(len(tokenizer) + 2)
    theirs.preprocess, theirs.blip.tokenizer = Normalize(MEAN, STD), tokenizer
    with torch.no_grad():
        expected = theirs.score(images / 255, captions)[:, 0]
    ours = read("imagereward", Eval(imagereward=str(path), bert=str(bert)), images, captions)
    assert_same(ours, expected)


def test_cmmd_is_its_ports(tmp_path: Path) -> None:
    """Its features are those of the image resized by Pillow; its distance is that of the port on torch."""
    folder = clip_folder(tmp_path / "clip")
    drawn, real = digit_images(IMAGES, 48, seed=1), 255 - digit_images(IMAGES, 48, seed=2) // 2
    one, other = (read("cmmd-clip", Eval(cmmd=str(folder)), images, [""] * IMAGES) for images in (drawn, real))
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    settings = model.visual.preprocess_cfg
    with torch.no_grad():
        resized = np.stack([np.array(to_picture(image).resize((32, 32), resample=3)) for image in drawn])
        pixels = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255
        embedded = model.encode_image(Normalize(settings["mean"], settings["std"])(pixels))
    assert_same(one, embedded)
    x, y = (nn.functional.normalize(features.double(), dim=1) for features in (one, other))

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        squares = first.pow(2).sum(1)[:, None] + second.pow(2).sum(1)[None]
        return torch.exp(-(squares - 2 * first @ second.T) / (2 * 10**2)).mean()

    expected = float(1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))
    assert expected > 0.01 and Mmd.of(one, other).value == pytest.approx(expected, abs=1e-5)
    assert Mmd.of(one, one).value == pytest.approx(0, abs=1e-9)


def test_an_mmd_of_more_rows_than_a_block_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(50, 8, generator=generator), torch.randn(70, 8, generator=generator) + 1
    whole = Mmd.of(one, other).value
    monkeypatch.setattr("randcond.eval.scores.mmd.BLOCK", 7)
    assert Mmd.of(one, other).value == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("hps", {"hps": "gone.pt"}, r"eval\.hps: no weights at gone\.pt"),
        ("imagereward", {"imagereward": "gone.safetensors"}, r"eval\.imagereward: no weights at gone\.safetensors"),
        ("imagereward", {"bert": "EMPTY"}, r"eval\.bert: .* has no vocab\.txt"),
        ("pickscore", {"pickscore": "EMPTY"}, r"eval\.pickscore: .* has no config\.json, model\.safetensors, prep"),
        ("cmmd-clip", {"cmmd": "EMPTY"}, r"eval\.cmmd: .* has no open_clip_config\.json, open_clip_model\.safetensors"),
        ("clip", {"clip": "local-dir:gone"}, r"eval\.clip: there is no folder gone"),
        ("clip", {"clip_weights": "/gone/clip.pt"}, r"eval\.clip_weights: no weights at /gone/clip\.pt"),
        ("pickscore", {"pickscore": "./gone"}, r"eval\.pickscore: no weights at \./gone"),
        ("imagereward", {"bert": "/gone/bert"}, r"eval\.bert: no weights at /gone/bert"),
        ("dino", {"dino": "../gone"}, r"eval\.dino: no weights at \.\./gone"),
    ],
)
def test_missing_weights_are_named_in_the_check(name: str, settings: dict[str, str], said: str, tmp_path: Path) -> None:
    given = {key: str(tmp_path) if value == "EMPTY" else value for key, value in settings.items()}
    with pytest.raises(UserError, match=said):
        check_weights([name], Eval(**given))


def test_what_will_be_downloaded_is_told(tmp_path: Path) -> None:
    words = ["eval.metrics=[digits,hps,pickscore,imagereward]", f"eval.pickscore={tmp_path}"]
    config = load_config("demo-with", words)
    assert to_download(config) == ["RE-N-Y/ImageReward", "RE-N-Y/hpsv21", "google-bert/bert-base-uncased"]
    assert to_download(load_config("demo-with")) == []


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    weights, bert = imagereward_weights(tmp_path / "reward.pt", 99), bert_folder(tmp_path / "bert", "a red three")
    with pytest.raises(UserError, match=r"eval\.bert: .* has 8 tokens, expected 97, as those of eval\.imagereward"):
        load_extractors(["imagereward"], Eval(imagereward=str(weights), bert=str(bert)), "cpu")
