"""Exported students: the teacher's files, in any dtype, without local paths, for older libraries too."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import DTYPES
from randcond.model_zoo.checkpoints.tokenizers import Tokenizers
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.export import copy_student, export_student, load_denoiser, load_pipeline
from randcond.model_zoo.importing.older_libraries import for_older_libraries
from randcond.model_zoo.students.registry import STUDENTS, build_student, find_rule
from randcond.model_zoo.teacher import Teacher
from tests.support import shaped
from tests.support.drawing import draw_here

WEIGHTS = "diffusion_pytorch_model.safetensors"
OF_TOKENIZERS = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
TEACHER_OF = {"koala": "sdxl"}  # of all other rules: Stable Diffusion 1.x
RULES = [*STUDENTS, "channel-0.65"]
# The keys of a U-Net's configuration in diffusers 0.35. It ignores others with a warning.
KNOWN_TO_0_35 = set(
    [
        "sample_size",
        "in_channels",
        "out_channels",
        "center_input_sample",
        "flip_sin_to_cos",
        "freq_shift",
        "down_block_types",
        "mid_block_type",
        "up_block_types",
        "only_cross_attention",
        "block_out_channels",
        "layers_per_block",
        "downsample_padding",
        "mid_block_scale_factor",
        "dropout",
        "act_fn",
        "norm_num_groups",
        "norm_eps",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "attention_head_dim",
        "num_attention_heads",
        "dual_cross_attention",
        "use_linear_projection",
        "class_embed_type",
        "addition_embed_type",
        "addition_time_embed_dim",
        "num_class_embeds",
        "upcast_attention",
        "resnet_time_scale_shift",
        "resnet_skip_time_act",
        "resnet_out_scale_factor",
        "time_embedding_type",
        "time_embedding_dim",
        "time_embedding_act_fn",
        "timestep_post_act",
        "time_cond_proj_dim",
        "conv_in_kernel",
        "conv_out_kernel",
        "projection_class_embeddings_input_dim",
        "attention_type",
        "class_embeddings_concat",
        "mid_block_only_cross_attention",
        "cross_attention_norm",
        "addition_embed_type_num_heads",
    ]
)


def as_published(folder: Path) -> None:
    """Gives a teacher the form of a published one: transformers 4's tokenizer files and names, and recorded paths."""
    for_older_libraries(folder)
    for part in folder.glob("tokenizer*"):
        (part / "tokenizer.json").unlink()
        (part / "special_tokens_map.json").write_text('{"bos_token": "<|startoftext|>"}')
        settings = json.loads((part / "tokenizer_config.json").read_text())
        recorded = {
            "name_or_path": "openai/clip-vit-large-patch14",
            "special_tokens_map_file": "./special_tokens_map.json",
        }
        (part / "tokenizer_config.json").write_text(json.dumps({**settings, **recorded}))
    for path in [folder / "model_index.json", *folder.glob("*/config.json")]:
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({**settings, "_name_or_path": str(folder), "made_in": f"{folder}/x"}))
    for path in folder.glob("text_encoder*/config.json"):  # as SDXL's say
        settings = json.loads(path.read_text())
        del settings["dtype"]
        path.write_text(json.dumps({**settings, "torch_dtype": "float16"}))
    index = json.loads((folder / "model_index.json").read_text())
    if "safety_checker" in index:
        index |= {
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "requires_safety_checker": True,
        }
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        for part in ("safety_checker", "feature_extractor"):
            (folder / part).mkdir()
        (folder / "feature_extractor/preprocessor_config.json").write_text(
            '{"image_processor_type": "CLIPImageProcessor"}'
        )
        (folder / "safety_checker/config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(index))
    for path in [*folder.glob("*/*.safetensors")]:
        half = {name: value.half() for name, value in load_file(path).items()}
        save_file(half, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
    (folder / "LICENSE.md").write_text("a licence")
    (folder / "v1.ckpt").write_bytes(b"a pickle")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    found = {layout: shaped.build(layout, root / layout) for layout in ("sd-v1-4", "sd-v2-1", "sdxl")}
    for folder in found.values():
        as_published(folder)
    return found


@pytest.fixture(scope="module")
def students(teachers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student of each rule, and one of each other kind of teacher, exported in fp32."""
    root, found = tmp_path_factory.mktemp("students"), {}
    for name in [*RULES, "sd-v2-1", "sdxl"]:
        layout = name if name in teachers else TEACHER_OF.get(name.split("-")[0], "sd-v1-4")
        rule = "block-base" if name in teachers else name
        teacher = load_denoiser(teachers[layout] / "unet", torch.float32)
        copied = teacher.state_dict() if find_rule(rule).copies else None
        unet = build_student(rule, Architecture.of(teacher), 0, copied)
        export_student(root / name, unet, teachers[layout], "a card")
        found[name] = root / name
    return found


def parts_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_every_student_is_exported_in_every_dtype(
    name: str, dtype: str, students: dict[str, Path], tmp_path: Path
) -> None:
    copy_student(tmp_path / "out", students[name], "another card", None if dtype == "fp32" else DTYPES[dtype])
    assert parts_of(tmp_path / "out") == parts_of(students[name])
    for path in students[name].glob("*/*.safetensors"):
        ours, exact = load_file(tmp_path / "out" / path.relative_to(students[name])), load_file(path)
        assert ours.keys() == exact.keys()
        assert all(torch.equal(ours[key], value.to(DTYPES[dtype])) for key, value in exact.items()), path
    loaded = load_denoiser(tmp_path / "out/unet", torch.float32)
    assert type(loaded) is find_rule(name).model
    assert json.loads((tmp_path / "out/model_index.json").read_text())["unet"][1] == type(loaded).__name__
    assert (tmp_path / "out/README.md").read_text() == "another card"


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["block-base", "sd-v2-1", "sdxl", "slim-tiny"])
def test_a_student_in_another_dtype_draws_if_none_is_asked_for(
    name: str, dtype: str, students: dict[str, Path], tmp_path: Path
) -> None:
    """diffusers loads a U-Net in fp32 then, and transformers 5 a text encoder in the dtype of its configuration."""
    copy_student(tmp_path / "out", students[name], "a card", DTYPES[dtype])
    load = load_pipeline if name.startswith("slim") else DiffusionPipeline.from_pretrained
    exact, drawn = (draw_here(load(folder)) for folder in (students[name], tmp_path / "out"))
    assert np.abs(exact - drawn).mean() < (0.02 if dtype == "bf16" else 0.003)


@pytest.mark.parametrize("layout", ["sd-v1-4", "sd-v2-1", "sdxl"])
def test_parts_are_the_teachers_files(layout: str, teachers: dict[str, Path], students: dict[str, Path]) -> None:
    teacher, student = teachers[layout], students["block-base" if layout == "sd-v1-4" else layout]
    for path in sorted(teacher.glob("*/*")):
        part, ours = path.parent.name, student / path.relative_to(teacher)
        if part in ("unet", "safety_checker") or ".fp16." in path.name:
            assert part == "unet" or not ours.exists()
        elif path.name != "config.json":
            assert ours.read_bytes() == path.read_bytes(), path
    for part in teacher.glob("tokenizer*"):
        assert {path.name for path in (student / part.name).iterdir()} == set(OF_TOKENIZERS)
    assert (student / "LICENSE.md").read_text() == "a licence" and not (student / "v1.ckpt").exists()
    index = json.loads((student / "model_index.json").read_text())
    assert index.get("safety_checker") in (None, [None, None]) and not index.get("requires_safety_checker")
    assert {part for part, entry in index.items() if isinstance(entry, list) and entry[0]} == set(parts_of(student))
    assert index.keys() >= json.loads((teacher / "model_index.json").read_text()).keys() - {"_name_or_path", "made_in"}


def test_no_file_names_a_path_of_this_machine(teachers: dict[str, Path], students: dict[str, Path]) -> None:
    for folder in students.values():
        for path in (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"):
            assert str(teachers["sdxl"].parent) not in path.read_text(), path
            assert "_name_or_path" not in path.read_text() or path.name == "tokenizer_config.json"


@pytest.mark.parametrize("name", RULES)
def test_older_diffusers_knows_every_key_of_a_student(name: str, students: dict[str, Path]) -> None:
    settings = json.loads((students[name] / "unet/config.json").read_text())
    assert {key for key in settings if not key.startswith("_")} <= KNOWN_TO_0_35


@pytest.mark.heavy
def test_a_folder_of_transformers_5_becomes_one_for_both(tmp_path: Path) -> None:
    """transformers 4 needs a vocabulary and merges, and other names in the text encoder. No token and value changes."""
    teacher = shaped.build("sdxl", tmp_path / "teacher")
    tokenizers = [Teacher.load(teacher, "fp32").pipe.components[name] for name in ("tokenizer", "tokenizer_2")]
    tokenizers[0].add_tokens(["<cat>", "<cat>_1"])
    tokenizers[0].save_pretrained(teacher / "tokenizer")
    before = {path: load_file(path) for path in teacher.glob("text_encoder*/*.safetensors")}
    assert not [name for name in before[teacher / "text_encoder/model.safetensors"] if name.startswith("text_model.")]
    for_older_libraries(teacher)
    for path, tensors in before.items():
        now = load_file(path)
        assert all(name.startswith(("text_model.", "text_projection.")) for name in now)
        assert all(torch.equal(now[name if name in now else f"text_model.{name}"], tensors[name]) for name in tensors)
    again = Teacher.load(teacher, "fp32")
    captions = ["a <cat> and <cat>_1", "", "Naïve façade №5 — 猫!", "long " * 100]
    expected = Tokenizers(tokenizers)(captions)
    for rest in ("vocab.json", "tokenizer.json"):  # with all files, and with transformers 4's alone
        assert all(torch.equal(expected[key], value) for key, value in again.tokenizers(captions).items()), rest
        for part in teacher.glob("tokenizer*"):
            (part / "tokenizer.json").unlink(missing_ok=True)
        again = Teacher.load(teacher, "fp32")
    written = {path: path.read_bytes() for path in teacher.rglob("*") if path.is_file()}
    for_older_libraries(teacher)
    assert written == {path: path.read_bytes() for path in teacher.rglob("*") if path.is_file()}


@pytest.mark.heavy
def test_sharded_parts_are_copied_and_cast_with_their_index(teachers: dict[str, Path], tmp_path: Path) -> None:
    teacher = Teacher.load(teachers["sd-v1-4"], "fp32")
    teacher.pipe.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    export_student(tmp_path / "student", teacher.denoiser, tmp_path / "sharded", "a card")
    copy_student(tmp_path / "half", tmp_path / "student", "a card", torch.float16)
    for folder, dtype in (("student", torch.float32), ("half", torch.float16)):
        for part in ("vae", "text_encoder"):
            (path,) = (tmp_path / folder / part).glob("*.index.json")
            index = json.loads(path.read_text())
            tensors = {name: load_file(path.parent / file)[name] for name, file in index["weight_map"].items()}
            assert {value.dtype for value in tensors.values()} == {dtype}
            assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    exact = draw_here(DiffusionPipeline.from_pretrained(tmp_path / "student"))
    same = draw_here(DiffusionPipeline.from_pretrained(tmp_path / "sharded"))
    assert np.abs(exact - same).max() < 1e-4  # weights lie at other addresses of a file, which changes last bits


def test_a_value_beyond_fp16_is_named(students: dict[str, Path], tmp_path: Path) -> None:
    student = shutil.copytree(students["block-tiny"], tmp_path / "student")
    path = student / "vae" / WEIGHTS
    tensors = load_file(path)
    tensors["decoder.conv_in.bias"][0] = 1e6
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"decoder\.conv_in\.bias has values up to 1e\+06, more than .* use --dtype bf16"
    ):
        copy_student(tmp_path / "out", student, "a card", torch.float16)
    copy_student(tmp_path / "out-bf16", student, "a card", torch.bfloat16)
