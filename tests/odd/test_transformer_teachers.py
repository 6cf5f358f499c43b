"""Folders of transformer pipelines that can't be teachers: each is refused by file and key, without loading weights."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from randcond.launch.errors import UserError
from randcond.model_zoo.families.faults.look import check_teacher, teacher_faults
from tests.support import flow_teachers

INDEX, NET, VAE, SCHEDULER = (
    "model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json",
)  # fmt: skip
TEXT, TOKENIZER = "text_encoder/config.json", "tokenizer/tokenizer_config.json"
MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd3": flow_teachers.sd3,
    "pixart": flow_teachers.pixart,
    "klein": flow_teachers.klein,
}
ODD: list[tuple[str, str, dict[str, Any], str]] = [  # teacher, file, its changed keys, what is said
    ("sd3", INDEX, {"text_encoder_2": [None, None]}, r"text_encoder_2 is \[None, None\], expected CLIPTextModelWithPr"),
    ("sd3", INDEX, {"text_encoder": ["transformers", "CLIPTextModel"]}, "expected CLIPTextModelWithProjection of tra"),
    ("sd3", INDEX, {"_class_name": "StableDiffusion3Img2ImgPipeline"}, "_class_name is StableDiffusion3Img2ImgPipelin"),
    ("sd3", INDEX, {"scheduler": ["diffusers", "DDIMScheduler"]}, "DDIMScheduler is not for flow matching"),
    ("sd3", SCHEDULER, {"invert_sigmas": True}, "invert_sigmas is true: the denoiser is shown 1 - sigma"),
    ("sd3", NET, {"pooled_projection_dim": 21}, "pooled_projection_dim is 21, expected 20 as in the other parts"),
    ("sd3", NET, {"joint_attention_dim": 40}, "joint_attention_dim is 40, but T5 gives 32"),
    ("sd3", NET, {"joint_attention_dim": 16}, "joint_attention_dim is 16, but the two CLIPs give 20"),
    ("sd3", NET, {"sample_size": [16, 24]}, r"sample_size is \[16, 24\], expected the side of a square latent"),
    ("sd3", VAE, {"latent_channels": 4}, "in_channels is 16, expected 4 as in the other parts"),
    ("sd3", VAE, {"shift_factor": None}, "shift_factor is missing; the pipeline adds it to latents"),
    ("sd3", VAE, {"latents_mean": [0.1] * 16}, "latents_mean is .* which the pipeline does not use"),
    (
        "pixart",
        INDEX,
        {"text_encoder": ["transformers", "CLIPTextModel"]},
        "text_encoder is .* expected T5EncoderModel",
    ),
    ("pixart", INDEX, {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "has no beta_schedule"),
    ("pixart", NET, {"sample_size": None}, "sample_size is None, expected the side of a square latent"),
    ("pixart", NET, {"caption_channels": 16}, "caption_channels is 16, but T5 gives 32"),
    ("pixart", NET, {"out_channels": 6}, "out_channels is 6, expected 4, or twice that many"),
    ("pixart", NET, {"norm_type": "ada_norm_zero"}, "norm_type is ada_norm_zero, expected ada_norm_single"),
    ("pixart", NET, {"use_additional_conditions": True}, "the pipeline does not give the transformer the image's reso"),
    ("pixart", VAE, {"latent_channels": 16}, "in_channels is 4, but the VAE's latents have 16"),
    ("pixart", VAE, {"shift_factor": 0.1}, "shift_factor is 0.1, which the pipeline does not use"),
    ("klein", INDEX, {"is_distilled": True}, "is_distilled is true: this model was distilled to few steps"),
    ("klein", INDEX, {"vae": ["diffusers", "AutoencoderKL"]}, "vae is .* expected AutoencoderKLFlux2 of diffusers"),
    ("klein", NET, {"guidance_embeds": True}, "guidance_embeds is True, expected False"),
    ("klein", NET, {"in_channels": 64}, "in_channels is 64, expected 32"),
    ("klein", NET, {"out_channels": 64}, "out_channels is 64, expected 32"),
    ("klein", NET, {"joint_attention_dim": 16}, "joint_attention_dim is 16, expected 48"),
    ("klein", VAE, {"patch_size": [1, 1]}, r"patch_size is \[1, 1\], expected \[2, 2\]"),
    (
        "klein",
        TEXT,
        {"num_hidden_layers": 20, "layer_types": ["full_attention"] * 20},
        "num_hidden_layers is 20, expected 27 or more",
    ),
    ("klein", TOKENIZER, {"padding_side": "left"}, "padding_side is left, expected right"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.mark.parametrize(("name", "file", "changes", "said"), ODD)
def test_it_is_refused_by_file_and_key(
    name: str, file: str, changes: dict[str, Any], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "teacher")
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | changes))
    found = list(teacher_faults(folder))
    assert found and str(folder) in found[0]
    assert any(re.search(said, line) for line in found), found


def test_a_part_that_is_not_there_is_named_once(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, part, way_out in (
        ("sd3", "text_encoder_3", r"copy it again, or set text_encoder_3 and tokenizer_3 there to [null, null]"),
        ("pixart", "text_encoder", "copy it again"),
    ):
        folder = shutil.copytree(folders[name], tmp_path / name)
        shutil.rmtree(folder / part)
        with pytest.raises(UserError) as raised:
            check_teacher(folder)
        assert str(raised.value) == f"{folder / part}: is missing, although model_index.json names it; {way_out}"


def test_a_chat_template_is_needed(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["klein"], tmp_path / "teacher")
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    assert any("has no chat_template.jinja, which the pipeline puts captions in" in f for f in teacher_faults(folder))
