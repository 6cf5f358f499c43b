"""Evaluations of the digits teacher: what is drawn, scored, kept and refused."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from randcond.eval.checks import check_evaluation, check_made
from randcond.eval.features.load import EXTRACTORS
from randcond.eval.images.generate import load_features, load_shown
from randcond.eval.images.prompts import choose_prompts, first_prompts, grid_prompts
from randcond.eval.scores.metrics import METRICS
from randcond.eval.scores.real_images import statistics_of_folder
from randcond.eval.stage import run
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import PACKAGE, eval_folder
from randcond.launch.config.sections import Config, Eval
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json
from randcond.model_zoo.checkpoints.layouts import VAE, text_config
from randcond.model_zoo.pipelines import load_frozen_pipeline
from randcond.model_zoo.sampler import caption_seed
from randcond.train.checks import check_grid
from randcond.train.watch.sample_grid import grid_bands
from tests.support import shaped
from tests.support.networks import (
    bert_folder,
    clip_folder,
    digit_images,
    dino_folder,
    imagereward_weights,
    inception_weights,
    pickscore_folder,
    save_pictures,
)

SYSTEM = """
base: digits
cache: {exclude: [three]}
eval: {of: [teacher], size: 10, batch: 8, steps: 3, cost: false}
paths: {reference: OUT}
"""


def system(folder: Path, *overrides: str) -> Config:
    """Returns the configuration of an evaluation of the digits teacher, without a student, into a folder."""
    path = folder / "system.yaml"
    path.write_text(SYSTEM.replace("OUT", str(folder / "out")))
    return load_config(str(path), overrides)


def scores_of(config: Config) -> dict[str, Any]:
    run(config)
    return json.loads((eval_folder(config) / "scores.json").read_text())


@pytest.mark.heavy
@pytest.mark.long
def test_every_metric_in_one_pass(tmp_path: Path) -> None:
    inception = inception_weights(tmp_path / "inception.safetensors", digit_images(8))
    real = save_pictures(tmp_path / "real", digit_images(24, seed=3))
    clip, bert = clip_folder(tmp_path / "clip"), bert_folder(tmp_path / "bert", "a red three on black")
    reward = imagereward_weights(tmp_path / "reward.safetensors", 5 + 5 + 2)
    words = [f"metrics=[{','.join(METRICS)}]", f"inception={inception}", f"imagereward={reward}", f"bert={bert}"]
    words += [
        f"clip=local-dir:{clip}",
        f"hps=local-dir:{clip}",
        f"cmmd={clip}",
        f"dino={dino_folder(tmp_path / 'dino')}",
    ]
    words += [f"pickscore={pickscore_folder(tmp_path / 'pickscore')}"]
    said = [f"eval.{word}" for word in words]
    ev = system(tmp_path, *said).eval
    statistics_of_folder(real, tmp_path / "statistics", ev, None, None, jpeg=False)
    words = ["cache.exclude=[]", f"eval.statistics={tmp_path / 'statistics'}"]  # one split: FID takes seconds
    found = scores_of(system(tmp_path, *said, *words))
    assert set(found["splits"]) == {"all"} and found["splits"]["all"]["images"] == 10
    for name in ("is_std", "recall", *(metric.best for metric in METRICS.values())):
        assert np.isfinite(found["splits"]["all"][name]), name
    assert "covariance is singular" in found["notes"]["all"][0]
    protocol = found["protocol"]
    assert protocol["sampler"] == "ddim" and protocol["steps"] == 3 and protocol["guidance"] == 3.0
    assert protocol["prompts_sha256"] and protocol["weights"] == "raw" and len(protocol["network"]) == 16
    assert set(protocol["extractors"]) == set(EXTRACTORS)
    compared = {metric.compares for metric in METRICS.values()} - {None}
    assert set(protocol["statistics"]) == {f"all {feature}" for feature in compared}
    assert compared == {"inception", "dino", "cmmd"}


@pytest.mark.heavy
def test_an_image_is_the_stock_pipelines(tmp_path: Path) -> None:
    config = system(tmp_path, "eval.save=files", "eval.sampler=teacher", "eval.batch=1", "eval.size=2")
    run(config)
    pipe = StableDiffusionPipeline.from_pretrained(PACKAGE / "data/digits/models/teacher")
    for number, caption in enumerate(choose_prompts(config).captions):
        generator = torch.Generator().manual_seed(caption_seed(config.eval.seed, number))
        stock = pipe(caption, num_inference_steps=3, guidance_scale=3.0, generator=generator).images[0]
        with Image.open(tmp_path / "out" / "images" / f"{number:06d}.png") as ours:
            assert np.array_equal(np.array(ours), np.array(stock)), caption


@pytest.mark.heavy
@pytest.mark.parametrize(("protocol", "kind"), [("native", "png"), ("paper", "jpg")])
def test_images_are_kept_where_asked_for(tmp_path: Path, protocol: str, kind: str) -> None:
    words = []
    if protocol == "paper":  # its images do not have the size that the judge needs
        words = ["eval.steps=null", "eval.guidance=null", "eval.sampler=null", "eval.metrics=[clip]"]
        words.append(f"eval.clip=local-dir:{clip_folder(tmp_path / 'clip')}")
    words += [f"eval.protocol={protocol}", "eval.save=shards", "eval.size=5", "eval.shown=2"]
    config = system(tmp_path, *words)
    run(config)
    prompts = choose_prompts(config)
    held = {}
    for path in sorted((tmp_path / "out" / "images").iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                held[member.name] = tar.extractfile(member).read()
    assert sorted(held) == sorted(f"{n:09d}.{end}" for n in range(10) for end in (kind, "txt"))
    assert held["000000003.txt"].decode() == prompts.captions[3]
    shown = load_shown(tmp_path / "out", 10, 8)
    assert sorted(shown) == [0, 1, 5, 6]  # two of each split
    picture = np.array(Image.open(io.BytesIO(held[f"000000005.{kind}"])))
    assert np.array_equal(picture, shown[5].permute(1, 2, 0).numpy())


@pytest.mark.heavy
def test_compute_batches_differ_by_a_grey_level_at_most(tmp_path: Path) -> None:
    held, scores = {}, {}
    for batch in (1, 7, 32):
        folder = tmp_path / str(batch)
        folder.mkdir()
        words = [f"eval.batch={batch}", "eval.size=16", "eval.shown=16"]
        scores[batch] = scores_of(system(folder, *words))["splits"]["all"]
        held[batch] = load_shown(folder / "out", 32, batch)
    for batch in (1, 7):
        for number, image in held[32].items():
            assert (held[batch][number].int() - image.int()).abs().max() <= 1
        for name in ("digit_accuracy", "colour_accuracy", "frechet_judge"):
            assert scores[batch][name] == pytest.approx(scores[32][name], rel=1e-3)


@pytest.mark.heavy
@pytest.mark.long
def test_scores_follow_the_metrics_without_drawing_again(tmp_path: Path) -> None:
    weights = inception_weights(tmp_path / "inception.safetensors", digit_images(8))
    real = save_pictures(tmp_path / "real", digit_images(12, seed=3))
    ev = Eval(inception=str(weights), metrics=["kid"])
    for name, size in (("one", None), ("other", 32)):
        images = real if name == "one" else save_pictures(tmp_path / "reals", digit_images(12, seed=4))
        statistics_of_folder(images, tmp_path / name, ev, None, size, jpeg=False)
    words = [f"eval.inception={weights}", "cache.exclude=[]"]
    first = scores_of(system(tmp_path, *words, "eval.metrics=[is]"))
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("chunk-*")}
    second = scores_of(system(tmp_path, *words, "eval.metrics=[is,kid]", f"eval.statistics={tmp_path / 'one'}"))
    third = scores_of(system(tmp_path, *words, "eval.metrics=[is,kid]", f"eval.statistics={tmp_path / 'other'}"))
    assert drawn == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("chunk-*")}
    assert "kid" not in first["splits"]["all"]
    assert second["splits"]["all"]["is"] == first["splits"]["all"]["is"]
    assert second["splits"]["all"]["kid"] != third["splits"]["all"]["kid"]
    statistics_of_folder(real, tmp_path / "large", ev, None, 64, jpeg=False)
    large = [*words, "eval.metrics=[kid]", f"eval.statistics={tmp_path / 'large'}", "eval.size=20"]
    with pytest.raises(UserError, match="was made from images of 64 pixels, but the scored images have 32"):
        run(system(tmp_path, *large, f"paths.reference={tmp_path / 'again'}"))
    with pytest.raises(UserError, match="does not match this experiment: steps is 3 there, 4 here"):
        run(system(tmp_path, *words, "eval.metrics=[is]", "eval.steps=4"))
    with pytest.raises(
        UserError, match=r"eval\.metrics: .* was made without judge: to add a metric that needs it, move"
    ):
        run(system(tmp_path, *words, "eval.metrics=[is,digits]"))


def test_all_evaluations_that_lack_a_network_are_named_before_any_work(tmp_path: Path) -> None:
    config = load_config("demo-with", [f"paths.reference={tmp_path / 'teacher'}", f"paths.run={tmp_path / 'run'}"])
    check_made(config)  # nothing is there
    for folder, extractors in ((tmp_path / "teacher", {}), (tmp_path / "run/eval-ema", {"inception": "i"})):
        folder.mkdir(parents=True)
        write_json(folder / "plan.json", {"extractors": extractors, "saved": "none"})
    with pytest.raises(UserError) as raised:
        check_made(config)
    said = str(raised.value)
    assert said.startswith("eval.metrics: the evaluation at ") and said.count("was made without judge") == 2
    assert f"{tmp_path}/teacher" in said and f"{tmp_path}/run/eval-ema" in said
    for folder in (tmp_path / "teacher", tmp_path / "run/eval-ema"):
        write_json(folder / "plan.json", {"extractors": {"judge": "j", "inception": "i"}, "saved": "none"})
    check_made(config)


@pytest.mark.heavy
def test_a_grid_of_other_captions(tmp_path: Path) -> None:
    (tmp_path / "grid.txt").write_text("a red seven on a white background\na blue two on a black background\n")
    config = system(tmp_path, f"eval.grid=[{tmp_path / 'grid.txt'}]", "eval.size=4")
    run(config)
    assert sorted(load_shown(tmp_path / "out" / "grid", 2, 8)) == [0, 1]


@pytest.mark.parametrize(("captions", "unseen"), [("three two", 4), ("two", 0), ("three", 8), ("three two two", 4)])
def test_the_grid_of_a_training_shows_unseen_captions_where_there_are_any(
    tmp_path: Path, captions: str, unseen: int
) -> None:
    lines = [f"a red {word}, no. {number}\n" for number, word in enumerate(captions.split())]
    (tmp_path / "captions.txt").write_text("".join(lines))
    words = ["cache.exclude=[three]", f"eval.captions=[{tmp_path / 'captions.txt'}]", "eval.size=null"]
    shown = [caption for some in grid_bands(system(tmp_path, *words)).values() for caption in some]
    assert (len(shown), sum("three" in caption for caption in shown)) == (8, unseen)


def test_a_training_that_could_not_draw_its_grid_is_refused_before_it_starts(tmp_path: Path) -> None:
    words = ["train.sample_every=10", "eval.captions=[]"]
    with pytest.raises(UserError, match=r"eval\.captions: is missing; or set train\.sample_every=0 to train without"):
        check_grid(load_config("demo-with", words))
    check_grid(load_config("demo-with", [*words, "train.sample_every=0"]))
    listed = ["cache.exclude=[]", f"eval.unseen={tmp_path / 'unseen.txt'}", f"eval.captions=[{tmp_path / 'all.txt'}]"]
    (tmp_path / "all.txt").write_text("".join(f"caption {number}\n" for number in range(100)))
    (tmp_path / "unseen.txt").write_text("".join(f"caption {number}\n" for number in range(98, 100)))
    bands = grid_bands(system(tmp_path, *listed, "eval.size=null"))
    shown = [caption for some in bands.values() for caption in some]
    assert [caption in ("caption 98", "caption 99") for caption in shown] == [False] * 4 + [True] * 4


def test_a_list_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("file_name,caption\n1.png,un café\n".encode("latin-1"))
    config = system(tmp_path, f"eval.captions=[{tmp_path / 'list.csv'}]", "eval.size=null", "cache.exclude=[]")
    with pytest.raises(UserError, match=r"list\.csv, line 2: not UTF-8 \(byte 0xe9 at column 13; Latin-1\?\)"):
        choose_prompts(config)


@pytest.mark.heavy
def test_another_split_of_the_same_captions_is_scored_anew(tmp_path: Path) -> None:
    """The images are not drawn again, because all tables use the same images of a teacher."""
    digits = ("red three", "red seven", "blue two", "green three", "green seven")
    (tmp_path / "list.txt").write_text("".join(f"a {digit} on a black background\n" for digit in digits))
    words = [f"eval.captions=[{tmp_path / 'list.txt'}]", "eval.size=null"]
    first = scores_of(system(tmp_path, *words))["splits"]["unseen"]
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("chunk-*")}
    second = scores_of(system(tmp_path, *words, "cache.exclude=[seven]", "eval.shown=1"))["splits"]["unseen"]
    assert drawn == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("chunk-*")}
    assert first["images"] == second["images"] == 2 and first["digits_drawn"] != second["digits_drawn"]
    with pytest.raises(UserError, match="was run with 'none', expected 'files'"):
        run(system(tmp_path, *words, "eval.save=files"))


@pytest.mark.heavy
def test_an_evaluation_that_was_begun_is_ended_as_it_was_begun(tmp_path: Path) -> None:
    """An unfinished evaluation must be finished with its own metrics and eval.save, so that all chunks hold the same.

    A finished one may be scored with fewer metrics.
    """
    clip = f"eval.clip=local-dir:{clip_folder(tmp_path / 'clip')}"
    both = [clip, "eval.metrics=[digits,clip]", "eval.save=files"]
    run(system(tmp_path, *both))
    killed = tmp_path / "out" / "chunk-00001.safetensors"
    held = killed.read_bytes()
    fewer = system(tmp_path, clip, "eval.metrics=[digits]", "eval.save=files")
    run(fewer)
    for name in ("chunk-00001.safetensors", "scores.json"):
        (tmp_path / "out" / name).unlink()
    with pytest.raises(UserError, match=r"eval\.metrics: .*was started with metrics that also need clip: finish it"):
        run(fewer)
    with pytest.raises(UserError, match=r"eval\.save: .*was started with 'files', got 'none': finish it"):
        run(system(tmp_path, clip, "eval.metrics=[digits,clip]"))
    killed.write_bytes(held[:-5])
    with pytest.raises(UserError, match=r"chunk-00001\.safetensors: is damaged .*; remove it and evaluate again"):
        run(system(tmp_path, *both))
    killed.unlink()
    scores = scores_of(system(tmp_path, *both))["splits"]["all"]
    assert np.isfinite(scores["clip"]) and killed.read_bytes() == held
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 20


def test_images_that_are_not_finite_are_not_scored(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(PACKAGE / "data/digits/models/teacher", model)
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"] = torch.full_like(tensors["decoder.conv_out.bias"], float("nan"))
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"images of captions 0, 1, 2, .* are NaN or infinite"):
        run(system(tmp_path, f"teacher.path={model}"))


LIST = "file_name,caption\na.jpg,a red one\nb.jpg,a red one\nc.jpg,a green three\n"


def test_a_published_list_is_drawn_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(LIST)
    (tmp_path / "unseen.csv").write_text("file_name,caption\nb.jpg,another\n")
    whole = ["eval.size=null", f"eval.captions=[{tmp_path / 'list.csv'}]"]
    prompts = choose_prompts(system(tmp_path, *whole, f"eval.unseen={tmp_path / 'unseen.csv'}"))
    assert prompts.captions == ["a red one", "a red one", "a green three"]
    assert prompts.splits == {"seen": [0], "unseen": [1, 2], "all": [0, 1, 2]}  # b by its file name, c by a word
    assert first_prompts(prompts, 1).splits == {"seen": [0], "unseen": [1], "all": [0, 1]}
    plain = choose_prompts(system(tmp_path, *whole, "cache.exclude=[]"))
    assert plain.splits == {"all": [0, 1, 2]} and plain.shown(2) == {"all": [0, 1]}
    assert plain.sha256 == prompts.sha256


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list.txt", "a red one\n\na red two\n", r"list.txt: 1 empty captions"),
        ("list.txt", "a red one\na red two\na red one\n", r"more than once, the first is 'a red one', rows 1, 3"),
        ("list.csv", LIST + "a.jpg,a red four\n", r"more than once, the first is 'a.jpg', rows 1, 4"),
        ("list.csv", LIST + "d.jpg,\n", r"list.csv, line 5: has no caption"),
        ("list.csv", LIST + ",a red five\n", r"list.csv, line 5: has no file name"),
        ("list.csv", "name\na.jpg\n", r"no column caption"),
    ],
)
def test_lists_that_are_not_sound(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        choose_prompts(system(tmp_path, "eval.size=null", f"eval.captions=[{tmp_path / name}]"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval.metrics=[fud]"], "eval.metrics: unknown 'fud'; known: fid, is, clip"),
        (["eval.metrics=[fid]", "eval.statistics=nowhere"], "eval.statistics: no nowhere/seen.npz"),
        (["eval.metrics=[fid]", "eval.statistics=one.npz"], "one.npz is a single file, but split seen"),
        (["eval.metrics=[is]"], "eval.inception: no weights at .*; download it with `randcond fetch inception`"),
        (["eval.grid=[nowhere.txt]"], "no such file"),
        (["eval.metrics=[fid,kid]"], "eval.statistics: is missing, but eval.metrics has fid, kid: make statistics"),
        (["eval.metrics=[]", "train.eval_every=5"], "train.eval_every: evaluations during training need a metric"),
        (["eval.resolution=64"], "eval.metrics: digits needs images of 32 pixels; .* give 64"),
        (["eval.metrics=[is]", "eval.size=9"], "eval.metrics: is needs at least 10 images, seen has 9"),
        (["eval.captions=[]"], "eval.captions: is missing"),
        (["eval.unseen=nowhere.csv"], "no such file"),
        (["eval.protocol=paper"], "eval.steps: protocol paper fixes it to 25, got 3"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_drawn(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_evaluation(system(tmp_path, *words))


def test_a_metric_whose_score_has_no_column_is_found_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "clip", replace(METRICS["clip"], best="brightness"))
    with pytest.raises(
        UserError, match=r"eval\.metrics: clip: reports have no column for its score brightness; add one"
    ):
        check_evaluation(system(tmp_path, "eval.metrics=[clip]"))


def test_statistics_without_features_do_not_serve_kid(tmp_path: Path) -> None:
    for split in ("seen", "unseen", "all"):
        (tmp_path / f"{split}.npz").touch()
    with pytest.raises(UserError, match=r"seen\.npz has no features file seen\.safetensors next to it, which KID"):
        check_evaluation(system(tmp_path, "eval.metrics=[kid]", f"eval.statistics={tmp_path}"))


def small_vae(**more: Any) -> AutoencoderKL:
    small = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8}
    return AutoencoderKL(**{**VAE, **small, **more}, sample_size=64)


def t5_tokenizer() -> T5Tokenizer:
    """Returns a T5 tokenizer whose tokens are single letters."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=[(piece, -float(rank)) for rank, piece in enumerate(pieces)], extra_ids=0)


def t5_encoder(width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def pixart(folder: Path) -> None:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=32,
    )
    encoder = t5_encoder(24)
    scheduler = shaped.SCHEDULERS["sd-v2-1"]()
    scheduler.register_to_config(prediction_type="epsilon")
    PixArtAlphaPipeline(t5_tokenizer(), encoder, small_vae(), transformer, scheduler).save_pretrained(folder)


def sd3(folder: Path) -> None:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=16,
        pos_embed_max_size=16,
    )
    sizes = {"hidden_size": 16, "projection_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(**text_config({**sizes, "intermediate_size": 32, "hidden_act": "gelu"}))
    vae = small_vae(latent_channels=16, shift_factor=0.06, scaling_factor=1.53)
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=shaped.clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=shaped.clip_tokenizer(),
        text_encoder_3=t5_encoder(32),
        tokenizer_3=t5_tokenizer(),
    ).save_pretrained(folder)


def sdxl(folder: Path) -> None:
    shaped.build("sdxl", folder)


@pytest.mark.heavy
@pytest.mark.parametrize("build", [pixart, sd3, sdxl])
def test_other_systems_by_the_same_command(tmp_path: Path, build: Any) -> None:
    build(tmp_path / "model")
    clip = clip_folder(tmp_path / "clip")
    words = ["eval.protocol=sdxl", "eval.steps=2", "eval.guidance=null", "eval.sampler=null", "eval.metrics=[clip]"]
    words += [f"eval.clip=local-dir:{clip}", f"teacher.path={tmp_path / 'model'}", "eval.size=2", "eval.batch=3"]
    config = system(tmp_path, *words, "eval.save=files")
    found = scores_of(config)
    assert np.isfinite(found["splits"]["all"]["clip"]) and found["protocol"]["guidance"] > 1
    assert load_features(tmp_path / "out", 4, 3, "clip").shape == (4,)
    # The first batch equals the images of the stock pipeline.
    pipe = load_frozen_pipeline(tmp_path / "model", "fp32", "cpu")
    captions = choose_prompts(config).captions[:3]
    generators = [torch.Generator().manual_seed(caption_seed(config.eval.seed, n)) for n in range(3)]
    stock = pipe(captions, num_inference_steps=2, generator=generators).images
    for number, image in enumerate(stock):
        data = io.BytesIO()
        image.save(data, format="JPEG")
        out = io.BytesIO()
        Image.open(data).resize((256, 256)).save(out, format="JPEG")
        assert (tmp_path / "out" / "images" / f"{number:06d}.jpg").read_bytes() == out.getvalue()


def test_what_is_no_text_to_image_pipeline(tmp_path: Path) -> None:
    unet = UNet2DModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="expected a text-to-image pipeline with an autoencoder"):
        load_frozen_pipeline(tmp_path / "model", "fp32", "cpu")
    sd3(tmp_path / "flow")
    with pytest.raises(UserError, match="sampler ddim: does not support flow-matching models"):
        load_frozen_pipeline(tmp_path / "flow", "fp32", "cpu", "ddim")


def test_the_captions_of_the_papers_figures_come_along(tmp_path: Path) -> None:
    for figure, count, word in (
        ("1", 5, "Dogs on Girder"),
        ("6", 2, "jackal"),
        ("b", 12, "Doberman"),
        ("c", 1, "mech"),
    ):
        grid = grid_prompts(system(tmp_path, f"eval.grid=[package:launch/prompts/figure-{figure}.txt]"))
        assert len(grid.captions) == count and any(word in caption for caption in grid.captions)
