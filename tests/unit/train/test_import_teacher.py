"""Checkpoints in the forms that people have become teachers' folders, offline, with the same weights."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from randcond.launch.errors import UserError
from randcond.model_zoo.families.faults.look import teacher_faults
from randcond.model_zoo.families.stable_diffusion import StableDiffusion
from randcond.model_zoo.importing.single_file import _Kind, _write_configuration
from randcond.model_zoo.teacher import Teacher
from randcond.train.tools.import_teacher import import_teacher
from tests.support import shaped
from tests.support.flow_teachers import pixart
from tests.support.ldm import one_file

pytestmark = pytest.mark.heavy
LAYOUTS = ["sd-v1-4", "sd-v2-1", "sdxl"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
CAPTIONS = ["a red cat", "", "long " * 100]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    return {layout: shaped.build(layout, root / layout) for layout in LAYOUTS}


@pytest.fixture(scope="session")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each teacher in one file, by its original names."""
    root = tmp_path_factory.mktemp("files")
    for layout in LAYOUTS:
        save_file(one_file(Teacher.load(folders[layout], "fp32").pipe), root / f"{layout}.safetensors")
    return {layout: root / f"{layout}.safetensors" for layout in LAYOUTS}


def descriptions(folder: Path, out: Path) -> Path:
    """Copies a teacher's folder without its weights."""
    return Path(shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors")))


def same_teacher(one: Path, other: Path, tolerance: float = 0.0) -> None:
    """Asserts that two folders show the U-Net the same, and have the same U-Net and autoencoder."""
    first, second = Teacher.load(one, "fp32"), Teacher.load(other, "fp32")
    conditions = [teacher.encode(teacher.tokenizers(CAPTIONS)) for teacher in (first, second)]
    for key, value in conditions[0].items():
        assert torch.allclose(value, conditions[1][key], atol=tolerance), key
    for part in ("unet", "vae"):
        mine, theirs = (getattr(teacher.pipe, part).state_dict() for teacher in (first, second))
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[name], theirs[name], atol=tolerance) for name in mine)
    assert torch.equal(first.process.schedule.alphas_cumprod, second.process.schedule.alphas_cumprod)
    assert first.process.schedule.config.prediction_type == second.process.schedule.config.prediction_type


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_file_becomes_a_folder(
    layout: str, folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    config = descriptions(folders[layout], tmp_path / "config")
    prediction = "v_prediction" if layout == "sd-v2-1" else ""
    import_teacher(files[layout], tmp_path / "new", prediction, config)
    same_teacher(tmp_path / "new", folders[layout])
    assert "/" not in json.dumps(
        [json.loads(path.read_text()).get("_name_or_path") for path in tmp_path.glob("new/*.json")]
    )
    for part in (tmp_path / "new").glob("tokenizer*"):  # transformers 4 needs these files, and these names
        assert (part / "vocab.json").is_file() and (part / "merges.txt").is_file()
    assert all(name.startswith("text_model.") for name in load_file(tmp_path / "new/text_encoder/model.safetensors"))
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "new").glob("*/*config.json"))


def test_parts_of_different_dtypes_keep_their_values(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(files["sd-v1-4"])
    halved = {name: value.half() if name.startswith("model.") else value for name, value in tensors.items()}
    save_file(halved, tmp_path / "model.safetensors")
    said = import_teacher(
        tmp_path / "model.safetensors", tmp_path / "new", config=descriptions(folders["sd-v1-4"], tmp_path / "c")
    )
    assert said[0].endswith("float32")
    stored, before = (load_file(path / "vae" / WEIGHTS) for path in (tmp_path / "new", folders["sd-v1-4"]))
    assert all(torch.equal(stored[name], before[name]) for name in before)


def test_a_missing_tensor_and_a_config_that_contradicts_are_refused(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(files["sd-v1-4"])
    config = descriptions(folders["sd-v1-4"], tmp_path / "config")
    for place, name in enumerate(sorted(tensors)[:: len(tensors) // 6]):
        cut = {each: value for each, value in tensors.items() if each != name}
        save_file(cut, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"model\.safetensors: "):
            import_teacher(tmp_path / "model.safetensors", tmp_path / f"new-{place}", config=config)
    with pytest.raises(UserError, match=r"predicts v_prediction, but .*config says epsilon"):
        import_teacher(files["sd-v1-4"], tmp_path / "new", "v_prediction", config)
    with pytest.raises(UserError, match=r"--config: owner/name has no model_index\.json"):
        import_teacher(files["sd-v1-4"], tmp_path / "new", config=Path("owner/name"))


@pytest.mark.parametrize("nested", [False, True])
def test_a_ckpt_is_read_as_tensors(
    nested: bool, folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(files["sd-v1-4"])
    torch.save({"state_dict": tensors, "global_step": 7} if nested else tensors, tmp_path / "model.ckpt")
    import_teacher(tmp_path / "model.ckpt", tmp_path / "new", config=descriptions(folders["sd-v1-4"], tmp_path / "c"))
    same_teacher(tmp_path / "new", folders["sd-v1-4"])


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("open('executed', 'w')",))


@pytest.mark.parametrize("data", [pickle.dumps(Harmful()), b"no pickle at all", b""])
def test_a_pickle_that_is_more_than_tensors_is_refused(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.ckpt").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.ckpt: (holds more than tensors|can't be read)"):
        import_teacher(tmp_path / "model.ckpt", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt"]


def renamed(folder: Path, out: Path, variant: str = "", pickled: bool = False, shards: bool = False) -> Path:
    """Copies a teacher, with its weights in another form."""
    teacher = Teacher.load(folder, "fp32")
    size = {"max_shard_size": "200KB"} if shards else {}
    teacher.pipe.save_pretrained(out, variant=variant or None, **size)
    for path in out.glob("*/*.safetensors") if pickled else ():
        stem = "pytorch_model" if path.name.startswith("model") else "diffusion_pytorch_model"
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()
    return out


@pytest.mark.parametrize("layout", ["sd-v1-4", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "form", [{"variant": "fp16"}, {"pickled": True}, {"shards": True}, {"variant": "fp16", "shards": True}]
)
def test_a_folder_in_another_form_becomes_a_plain_one(
    layout: str, form: dict[str, object], folders: dict[str, Path], tmp_path: Path
) -> None:
    odd = renamed(folders[layout], tmp_path / "odd", **form)  # type: ignore[arg-type]
    if form != {"shards": True}:
        assert any("teacher import" in fault for fault in teacher_faults(odd))
    import_teacher(odd, tmp_path / "new")
    same_teacher(tmp_path / "new", folders[layout])


U_NET, CLIP = "model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.text_model.embeddings"
OPEN_CLIP = "cond_stage_model.model.token_embedding.weight"


def holding(*names: str, width: int = 320, channels: int = 4) -> dict[str, torch.Tensor]:
    """Returns tensors of a U-Net's first layer, an autoencoder, and more of these names."""
    more = {name: torch.zeros(4, 4) for name in ("first_stage_model.x", *names)}
    return {U_NET: torch.zeros(width, channels, 3, 3), **more}


REFUSED = {
    "inpainting": (holding(channels=9), "takes 9 channels"),
    "a LoRA": ({"lora_unet_down.lora_up.weight": torch.zeros(4, 4)}, "is no Stable Diffusion"),
    "another size": (
        holding(f"{CLIP}.token_embedding.weight", width=32),
        "begins with 32 channels .* give --config FOLDER",
    ),
    "without a text encoder": (holding(), "no text encoder that fits it"),
    "without an autoencoder": ({U_NET: torch.zeros(320, 4, 3, 3)}, "holds no autoencoder"),
    "the refiner": (holding("conditioner.embedders.0.model.text_projection"), "SDXL's refiner"),
    "CosXL": (holding("edm_vpred.sigma_max"), "has EDM's noise schedule .edm_vpred.sigma_max"),
    "unCLIP": (holding(OPEN_CLIP, "model.diffusion_model.label_emb.0.0.weight"), "shown more than text .label_emb"),
    "Stable Diffusion 2.x that says nothing": (
        holding(OPEN_CLIP),
        "give --prediction v_prediction .* or --prediction epsilon",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors, said = REFUSED[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=said):
        import_teacher(tmp_path / "model.safetensors", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_sources_and_targets_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "empty").mkdir()
    for source, said in ((tmp_path / "model.safetensors", "damaged"), (tmp_path / "empty", "expected a file")):
        with pytest.raises(UserError, match=said):
            import_teacher(source, tmp_path / "new")
    with pytest.raises(UserError, match="exists already"):
        import_teacher(folders["sdxl"], tmp_path / "empty")


@pytest.mark.parametrize(
    "kind",
    [
        _Kind("sd-v1-4", 64, "epsilon", False),
        _Kind("sd-v1-4", 64, "v_prediction", True),
        _Kind("sd-v2-1", 96, "v_prediction", False),
        _Kind("sd-v2-1", 64, "epsilon", False),
        _Kind("sdxl", 128, "epsilon", False),
        _Kind("sdxl", 128, "v_prediction", True),
    ],
)
def test_the_published_models_are_described_as_teachers(kind: _Kind, tmp_path: Path) -> None:
    folder = _write_configuration(kind, tmp_path / "config")
    parts = ["unet", "vae", "text_encoder", "tokenizer"]
    parts += ["text_encoder_2", "tokenizer_2"] if kind.layout == "sdxl" else []
    assert list(StableDiffusion().faults(folder, parts)) == []
    faults = list(teacher_faults(folder))
    assert faults and all("has no weights" in fault for fault in faults)


@pytest.mark.parametrize("inside", [False, True])
def test_a_denoiser_alone_takes_the_rest_from_a_pipeline(
    inside: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    tuned = shaped.build("sd-v1-4", tmp_path / "tuned", seed=5)
    alone = Path(shutil.copytree(tuned / "unet", tmp_path / "checkpoint" / "unet"))
    source = alone.parent if inside else alone
    said = import_teacher(source, tmp_path / "new", rest=str(folders["sd-v1-4"]))
    assert said[0].startswith("unet: 1 file") and len(said) == 3
    for part, origin in (("unet", tuned), ("vae", folders["sd-v1-4"])):
        stored, before = (load_file(path / part / WEIGHTS) for path in (tmp_path / "new", origin))
        assert stored.keys() == before.keys() and all(torch.equal(stored[name], before[name]) for name in before)
    Teacher.load(tmp_path / "new", "fp32")


def test_a_transformer_of_the_newer_class_takes_the_rest_of_an_older_folder(tmp_path: Path) -> None:
    older, alone = pixart(tmp_path / "older"), pixart(tmp_path / "tuned", seed=1) / "transformer"
    named = json.loads((alone / "config.json").read_text()) | {"_class_name": "PixArtTransformer2DModel"}
    (alone / "config.json").write_text(json.dumps(named))
    import_teacher(alone, tmp_path / "new", rest=str(older))
    assert list(teacher_faults(tmp_path / "new")) == []
    loaded = Teacher.load(tmp_path / "new", "fp32").denoiser.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in load_file(alone / WEIGHTS).items())


def test_a_denoiser_that_does_not_suit_its_pipeline_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = pixart(tmp_path / "other")
    with pytest.raises(UserError, match=r"unet: a denoiser alone; --rest PIPELINE names"):
        import_teacher(folders["sd-v1-4"] / "unet", tmp_path / "new")
    with pytest.raises(
        UserError, match=r"_class_name is UNet2DConditionModel, but the denoiser of .*other is a PixArt"
    ):
        import_teacher(folders["sd-v1-4"] / "unet", tmp_path / "new", rest=str(other))
    with pytest.raises(UserError, match=r"(?s)unet: can't be a teacher:\n.*cross_attention_dim"):
        import_teacher(folders["sdxl"] / "unet", tmp_path / "new", rest=str(folders["sd-v1-4"]))
    with pytest.raises(UserError, match=r"--rest is for a denoiser alone; this folder has it all"):
        import_teacher(folders["sd-v1-4"], tmp_path / "new", rest=str(other))
    with pytest.raises(UserError, match=r"no teacher at .*nothing"):
        import_teacher(folders["sd-v1-4"] / "unet", tmp_path / "new", rest=str(tmp_path / "a" / "nothing"))
    assert not (tmp_path / "new").exists()
