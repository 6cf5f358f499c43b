"""Scores equal those of the reference tools: torch-fidelity, pytorch-fid, open_clip and Pillow."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch_fidelity
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from randcond.eval.evaluate import prepare, references
from randcond.eval.features.load import load_extractors
from randcond.eval.images.protocol_images import scored_images, to_picture
from randcond.eval.scores.metrics import METRICS, warnings
from randcond.eval.scores.moments import Moments, frechet_distance
from randcond.eval.scores.real_images import statistics_of_folder
from randcond.eval.scores.statistics import Reference, read_statistics
from randcond.launch.config.experiments import load_config
from randcond.launch.config.protocols import PROTOCOLS, protocol_of
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from tests.support.networks import clip_folder, digit_images, dino_folder, inception_weights, save_pictures


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inception_weights(tmp_path_factory.mktemp("inception") / "inception.pth", digit_images(8, seed=9))


def rows_of(images: Tensor, ev: Eval, names: list[str], captions: list[str] | None = None) -> dict[str, Tensor]:
    extractors = load_extractors(names, ev, "cpu")
    found: dict[str, list[Tensor]] = {}
    said = captions or [""] * len(images)
    for start in range(0, len(images), 32):
        for extractor in extractors.values():
            for row, values in extractor.read(images[start : start + 32], said[start : start + 32]).items():
                found.setdefault(row, []).append(values)
    return {row: torch.cat(values) for row, values in found.items()}


def reference_of(folder: Path, out: Path, ev: Eval, row: str = "inception") -> Reference:
    statistics_of_folder(folder, out, ev, None, None, jpeg=False)
    extractor = "inception" if row == "inception" else "dino"
    loaded = load_extractors([extractor], ev, "cpu")[extractor]
    return read_statistics(str(out), "all", row, {"extractor": loaded.identity, "jpeg": False}, loaded.width)


def compare(images: int, side: int, inception: Path, folder: Path, kid_subset: int) -> tuple[dict, dict]:
    """Returns our scores and torch-fidelity's for the same drawn and real images, with the same weights."""
    drawn, real = digit_images(images, side, seed=1), digit_images(images, side, seed=2)
    drawn = 255 - drawn // 2  # another distribution
    one, other = save_pictures(folder / "drawn", drawn), save_pictures(folder / "real", real)
    ev = Eval(inception=str(inception), metrics=["fid"])
    reference = reference_of(other, folder / "statistics", ev)
    rows = rows_of(drawn, ev, ["inception"])
    ours = {}
    for name in ("fid", "is", "precision-recall"):
        ours |= METRICS[name].score(rows, [], reference)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(one),
        input2=str(other),
        fid=True,
        isc=True,
        prc=True,
        kid=True,
        kid_subset_size=kid_subset,
        feature_extractor="inception-v3-compat",  # by default, precision and recall use another network
        cuda=False,
        verbose=False,
        cache=False,
        save_cpu_ram=True,  # loads images in this process
        batch_size=32,
        feature_extractor_weights_path=str(inception),
    )
    ours |= METRICS["kid"].score(rows, [], reference)
    return ours, theirs


def assert_same(ours: dict, theirs: dict) -> None:
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert ours["is_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-4)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=0.02)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=0.02)
    assert theirs["inception_score_mean"] > 1.5


@pytest.mark.heavy
@pytest.mark.long
def test_fid_is_kid_as_torch_fidelity(inception: Path, tmp_path: Path) -> None:
    ours, theirs = compare(20, 64, inception, tmp_path, kid_subset=20)
    assert_same(ours, theirs)


def fid_by_pytorch_fid(folders: list[Path], inception: Path, where: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Returns the FID as pytorch-fid's command line computes it. `inception` stands in for the published weights.

    Few images span few of the 2,048 dimensions. There the FID is computed within their span, where it is the same: the
    root of a matrix of the whole size takes half a minute.
    """
    cached = where / "torch" / "hub" / "checkpoints" / Path(FID_WEIGHTS_URL).name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(inception.read_bytes())
    monkeypatch.setenv("TORCH_HOME", str(where / "torch"))
    model = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    read = [fid_score.get_activations(sorted(each.iterdir()), model, 32, 2048, "cpu", 0) for each in folders]
    if sum(map(len, read)) < 2048:
        basis, _ = np.linalg.qr(np.concatenate(read).T)
        read = [features @ basis for features in read]
    moments = [(features.mean(axis=0), np.cov(features, rowvar=False)) for features in read]
    return fid_score.calculate_frechet_distance(*moments[0], *moments[1])


def compare_with_pytorch_fid(
    images: int, inception: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float]:
    """Returns our FID and pytorch-fid's at the protocol's 256 pixels."""
    drawn, real = 255 - digit_images(images, 256, seed=1) // 2, digit_images(images, 256, seed=2)
    folders = [save_pictures(folder / "drawn", drawn), save_pictures(folder / "real", real)]
    ev = Eval(inception=str(inception), metrics=["fid"], fid="pytorch-fid")
    reference = reference_of(folders[1], folder / "statistics", ev)
    ours = METRICS["fid"].score(rows_of(drawn, ev, ["inception"]), [], reference)["fid"]
    return ours, fid_by_pytorch_fid(folders, inception, folder, monkeypatch)


@pytest.mark.heavy
@pytest.mark.long
def test_fid_as_pytorch_fid(inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = compare_with_pytorch_fid(6, inception, tmp_path, monkeypatch)
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_three_thousand_images_as_torch_fidelity(inception: Path, tmp_path: Path) -> None:
    ours, theirs = compare(3000, 256, inception, tmp_path, kid_subset=1000)
    print("\nours", ours, "\ntorch-fidelity", theirs)
    assert_same(ours, theirs)


@pytest.mark.slow
def test_three_thousand_images_as_pytorch_fid(inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = compare_with_pytorch_fid(3000, inception, tmp_path, monkeypatch)
    print("\nours", ours, "\npytorch-fid", theirs)
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_clip_score_is_open_clips_cosine(tmp_path: Path) -> None:
    ev = Eval(clip=f"local-dir:{clip_folder(tmp_path / 'clip')}")
    images, captions = digit_images(40), [f"a handwritten {number}" for number in range(40)]
    ours = METRICS["clip"].score(rows_of(images, ev, ["clip"], captions), captions, None)["clip"]
    model, preprocess = open_clip.create_model_from_pretrained(ev.clip)
    pixels = torch.stack([preprocess(to_picture(image)) for image in images])
    text = open_clip.get_tokenizer(ev.clip)(captions)
    with torch.no_grad():
        seen, said = model.eval().encode_image(pixels), model.encode_text(text)
    assert ours == pytest.approx(torch.cosine_similarity(seen, said).double().mean().item(), abs=1e-6)


@pytest.mark.heavy
def test_a_network_is_told_by_its_settings_too(tmp_path: Path) -> None:
    """The same weights with another activation give other features, so the identity changes."""
    clip, dino = clip_folder(tmp_path / "clip"), dino_folder(tmp_path / "dino")
    ev = Eval(clip=f"local-dir:{clip}", dino=str(dino))
    before = {name: each.identity for name, each in load_extractors(["clip", "dino"], ev, "cpu").items()}
    assert before == {name: each.identity for name, each in load_extractors(["clip", "dino"], ev, "cpu").items()}
    for folder, name, place, key, value in (
        (clip, "open_clip_config.json", "model_cfg", "quick_gelu", True),
        (dino, "config.json", "", "hidden_act", "relu"),
    ):
        settings = json.loads((folder / name).read_text())
        (settings[place] if place else settings)[key] = value
        (folder / name).write_text(json.dumps(settings))
    after = {name: each.identity for name, each in load_extractors(["clip", "dino"], ev, "cpu").items()}
    assert before["clip"] != after["clip"] and before["dino"] != after["dino"]
    settings = json.loads((dino / "config.json").read_text())
    (dino / "config.json").write_text(json.dumps({**settings, "hidden_size": 48}))
    with pytest.raises(UserError, match=r"eval\.dino: .*dino: can't be loaded as AutoModel"):
        load_extractors(["dino"], ev, "cpu")


def test_dino_features_are_the_class_token(tmp_path: Path) -> None:
    folder = dino_folder(tmp_path / "dino")
    ev = Eval(dino=str(folder), metrics=["fd-dinov2"])
    images = digit_images(40)
    rows = rows_of(images, ev, ["dino"])
    model = AutoModel.from_pretrained(folder).eval()
    pixels = np.stack([np.array(to_picture(i).resize((224, 224), Image.Resampling.BICUBIC)) for i in images])
    normal = (torch.from_numpy(pixels).float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        tokens = model(normal.permute(0, 3, 1, 2)).last_hidden_state
    assert torch.allclose(rows["dino"], tokens[:, 0], atol=1e-5)
    real = reference_of(save_pictures(tmp_path / "real", images), tmp_path / "out", ev, "dino")
    assert METRICS["fd-dinov2"].score(rows, [], real)["fd_dinov2"] == pytest.approx(0, abs=1e-4)


def test_the_frechet_distance_against_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, scale = torch.randn(6, generator=generator), torch.rand(6, generator=generator) + 0.5
    white = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    white = (white - white.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov())).T  # exactly N(0, 1)
    one, other = Moments.of(white), Moments.of(white * scale + mean)
    assert np.allclose(other.mean, mean) and np.allclose(other.covariance, torch.diag(scale.double() ** 2))
    wanted = (mean**2).sum() + ((1 - scale) ** 2).sum()  # for diagonal covariances
    assert frechet_distance(one, other) == pytest.approx(wanted.item(), rel=1e-6)


def test_the_round_trip_in_memory_is_that_of_files(tmp_path: Path) -> None:
    images = torch.cat([digit_images(4, 96), torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)])
    pixels, files = scored_images(images, PROTOCOLS["paper"])
    for number, image in enumerate(images):
        to_picture(image).save(tmp_path / "drawn.jpg")
        with Image.open(tmp_path / "drawn.jpg") as opened:
            opened.resize((256, 256)).save(tmp_path / "small.jpg")
        assert (tmp_path / "small.jpg").read_bytes() == files[number]
        assert np.array_equal(np.array(Image.open(tmp_path / "small.jpg")), pixels[number].permute(1, 2, 0).numpy())
    same, png = scored_images(images, PROTOCOLS["native"])
    assert torch.equal(same, images) and Image.open(io.BytesIO(png[0])).format == "PNG"


def test_a_protocols_name_fixes_its_sampler() -> None:
    assert protocol_of(Eval(protocol="paper")).sampler == "ddim"
    assert protocol_of(Eval(protocol="bk-sdm", steps=25)).sampler == "pndm"
    assert protocol_of(Eval(protocol="native", steps=7)).steps == 7
    assert protocol_of(Eval(protocol="sdxl")).steps is None
    for ev, said in (
        (Eval(protocol="paper", sampler="pndm"), "eval.sampler: protocol paper fixes it to ddim, got pndm"),
        (Eval(protocol="bk-sdm", guidance=5.0), "eval.guidance: protocol bk-sdm fixes it to 7.5"),
        (Eval(protocol="ours"), "eval.protocol: unknown 'ours'; known: paper, bk-sdm, sdxl, lcm, native"),
    ):
        with pytest.raises(UserError, match=said):
            protocol_of(ev)


def test_weights_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"run": print}, tmp_path / "code.pth")
    for key, name, said in (
        ("inception", "missing.pth", "eval.inception: no weights at"),
        ("inception", "broken.safetensors", "weights can't be loaded"),
        ("inception", "other.pth", "does not hold the weights of TF Inception v3"),
        ("inception", "code.pth", "weights can't be loaded"),
        ("clip", "local-dir:missing", "eval.clip: local-dir:missing.*can't be loaded"),
        ("dino", str(tmp_path / "missing"), r"eval.dino: .*has no config\.json, model\.safetensors"),
    ):
        value = str(tmp_path / name) if key == "inception" else name
        with pytest.raises(UserError, match=said):
            load_extractors([key], Eval(**{key: value}), "cpu")
    with pytest.raises(UserError, match="randcond fetch inception"):
        load_extractors(["inception"], Eval(), "cpu")


def test_statistics_that_dont_fit(tmp_path: Path) -> None:
    ev = Eval(dino=str(dino_folder(tmp_path / "dino")), metrics=["fd-dinov2"])
    folder = save_pictures(tmp_path / "real", digit_images(6))
    statistics_of_folder(folder, tmp_path / "out", ev, None, 64, jpeg=True)
    path = tmp_path / "out" / "all-dino.npz"
    assert sorted(each.name for each in path.parent.iterdir()) == ["all-dino.npz", "all-dino.safetensors", "features"]
    assert load_file(path.with_suffix(".safetensors"))["features"].shape == (6, 24)
    identity = load_extractors(["dino"], ev, "cpu")["dino"].identity
    facts = {"extractor": identity, "jpeg": True}
    read_statistics(str(tmp_path / "out"), "all", "dino", facts, 24).features()
    (tmp_path / "broken-dino.npz").write_bytes(b"PK nothing")
    np.savez(tmp_path / "odd-dino.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    for where, split, wanted, width, said in (
        (tmp_path / "out", "all", {**facts, "jpeg": False}, 24, "made with jpeg True, but the evaluation uses False"),
        (tmp_path / "out", "all", {**facts, "extractor": "x"}, 24, "made with extractor .*, but the evaluation uses x"),
        (tmp_path / "out", "all", facts, 2048, r"mu is \(24,\), expected \(2048,\), as of 2048 features"),
        (tmp_path / "none", "all", facts, 24, "no .*none/all-dino.npz; make it .* with `randcond eval stats`"),
        (path, "all", facts, 24, r"is a single file, but split all \(dino\) needs its own"),
        (tmp_path, "broken", facts, 24, "does not hold FID statistics"),
        (tmp_path, "odd", facts, 24, r"mu is \(3,\), expected \(24,\)"),
        (Path("inputs/coco-statistics"), "all", facts, 24, "randcond fetch coco-statistics"),
    ):
        with pytest.raises(UserError, match=said):
            read_statistics(str(where), split, "dino", wanted, width)
    kept = path.with_suffix(".safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"does not belong to all-dino\.npz"):
        read_statistics(str(tmp_path / "out"), "all", "dino", facts, 24).features()
    (folder / "00003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"00003\.png: is not an image"):
        statistics_of_folder(folder, tmp_path / "again", ev, None, 64, jpeg=True)
    with pytest.raises(UserError, match="has no images"):
        statistics_of_folder(tmp_path / "dino", tmp_path / "again", ev, None, 64, jpeg=True)


def test_statistics_by_split_are_those_of_its_images(tmp_path: Path) -> None:
    ev = Eval(dino=str(dino_folder(tmp_path / "dino")), metrics=["fd-dinov2"], batch=4)
    images = digit_images(10)
    folder, lists = save_pictures(tmp_path / "real", images), tmp_path / "lists"
    lists.mkdir()
    (lists / "seen.csv").write_text("file_name,caption\n" + "".join(f"{n:05d}.png,a\n" for n in (1, 5, 7)))
    written = statistics_of_folder(folder, tmp_path / "out", ev, lists, None, jpeg=False)
    assert {path.name: count for path, count in written.items()} == {"all-dino.npz": 10, "seen-dino.npz": 3}
    seen = np.load(tmp_path / "out" / "seen-dino.npz")
    assert np.allclose(seen["mu"], rows_of(images[[1, 5, 7]], ev, ["dino"])["dino"].mean(dim=0), atol=1e-6)
    save_pictures(folder / "below", images[:2])
    with pytest.raises(UserError, match=r"seen.csv: 00001.png is the name of 2 images in different folders"):
        statistics_of_folder(folder, tmp_path / "twice", ev, lists, None, jpeg=False)
    shutil.rmtree(folder / "below")
    (lists / "unseen.csv").write_text("file_name\nother.png\n")
    with pytest.raises(UserError, match=r"unseen.csv: names 1 images that do not exist, the first is other.png"):
        statistics_of_folder(folder, tmp_path / "third", ev, lists, None, jpeg=False)


def test_statistics_of_different_images_are_not_taken_together(tmp_path: Path) -> None:
    ev = Eval(dino=str(dino_folder(tmp_path / "dino")), metrics=["fd-dinov2"])
    out, lists = tmp_path / "out", tmp_path / "lists"
    lists.mkdir()
    (lists / "unseen.csv").write_text("file_name\n00001.png\n00003.png\n")
    statistics_of_folder(save_pictures(tmp_path / "real", digit_images(6)), out, ev, lists, None, jpeg=False)
    words = [f"eval.dino={ev.dino}", "eval.metrics=[fd-dinov2]", f"eval.statistics={out}", "cache.exclude=[three]"]
    config = load_config("demo-with", [*words, "eval.size=4"])
    task = prepare(config)
    task.prompts.splits.pop("seen")
    assert set(references(config, task)) == {("unseen", "dino"), ("all", "dino")}
    chunk = out / "features" / "chunk-00000.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"chunk-00000\.safetensors: is damaged .*; remove it and run"):
        statistics_of_folder(tmp_path / "real", out, ev, lists, None, jpeg=False)
    shutil.rmtree(out / "features")
    other = save_pictures(tmp_path / "other", digit_images(7, seed=1))
    statistics_of_folder(other, out, ev, None, None, jpeg=False)  # without the list
    with pytest.raises(UserError, match=r"-dino\.npz and .*-dino\.npz were made from different images; make all"):
        references(config, task)


def test_scores_of_few_images_come_with_a_warning() -> None:
    real = Reference(Path("all.npz"), Moments(100, np.zeros(2048), np.eye(2048)), {})
    dino = Reference(Path("all-dino.npz"), Moments(100, np.zeros(1024), np.eye(1024)), {"images": 100})
    assert "2000 images for 2048 features" in warnings(["fid"], 2000, {"inception": real})[0]
    for both in ({"inception": real, "dino": dino}, {"dino": dino, "inception": real}):
        notes = warnings(["fd-dinov2", "fid"], 2000, both)
        assert [note for note in notes if "2000 images for 2048 features" in note]
        assert [note for note in notes if "scale and resize images" in note]
    known = {"inception": Reference(real.path, replace(real.moments, count=30_000), {"images": 30_000})}
    assert warnings(["fid"], 30_000, known) == []
    assert "biased downwards" in warnings(["is"], 100, {})[0]
