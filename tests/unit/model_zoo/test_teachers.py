"""Teachers of every family have one interface, and give the same results as their diffusers pipelines."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, UNet2DConditionModel

from randcond.data.stream.batch import Batch
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import PACKAGE
from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.stored_tensors import StoredTensors
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.export import export_student
from randcond.model_zoo.pipelines import load_frozen_pipeline
from randcond.model_zoo.sampler import decode, draw_latents
from randcond.model_zoo.students.registry import build_student
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step, flop_per_sample
from tests.support import shaped
from tests.support.drawing import draw_elsewhere, draw_here

LAYOUTS = ["sd-v1-4", "sd-v2-1", "sdxl"]
CAPTIONS = ["a red cat", "", "a photograph of an astronaut riding a horse"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    return {layout: shaped.build(layout, root / layout) for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captions_become_the_pipelines_own_condition(layout: str, folders: dict[str, Path]) -> None:
    teacher = Teacher.load(folders[layout], "fp32")
    ids = teacher.tokenizers(CAPTIONS)
    condition = teacher.encode(ids, torch.tensor([False, True, False]))
    text = condition["encoder_hidden_states"]
    if layout != "sdxl":
        assert set(condition) == {"encoder_hidden_states"} and set(ids) == {"token_ids"}
        drawn, empty = teacher.pipe.encode_prompt(CAPTIONS, "cpu", 1, True)
        assert torch.equal(text, drawn) and torch.equal(text[1], empty[1])
        return
    drawn, empty, pooled, empty_pooled = teacher.pipe.encode_prompt(CAPTIONS, device="cpu")
    for place in (0, 2):
        assert torch.equal(text[place], drawn[place])
        assert torch.equal(condition["text_embeds"][place], pooled[place])
    assert torch.equal(text[1], empty[1]) and text[1].abs().max() == 0  # force_zeros_for_empty_prompt
    assert torch.equal(condition["text_embeds"][1], empty_pooled[1])
    encoded = teacher.encode(ids, torch.tensor([False, True, False]), zeros=False)  # optional, as the authors do it
    assert torch.equal(encoded["encoder_hidden_states"][1], drawn[1])
    assert condition["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]] * 3  # 16x16 latents, 8x8 pixels each


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_interface_predicts_noises_and_draws(layout: str, folders: dict[str, Path]) -> None:
    teacher = Teacher.load(folders[layout], "fp32")
    assert teacher.latent_shape == (4, 16, 16) and teacher.timesteps == 1000
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 16, 16, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 500, 999])
    condition = teacher.encode(teacher.tokenizers(CAPTIONS))
    assert denoise(teacher.denoiser, latents, timesteps, condition).shape == latents.shape

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    keep = (1 - betas).cumprod(0)[timesteps][:, None, None, None]
    noised = keep.sqrt() * latents + (1 - keep).sqrt() * noise
    assert torch.allclose(teacher.add_noise(latents, noise, timesteps).double(), noised, atol=1e-5)
    velocity = keep.sqrt() * noise - (1 - keep).sqrt() * latents
    exact = velocity if layout == "sd-v2-1" else noise.double()
    assert torch.allclose(teacher.target(latents, noise, timesteps).double(), exact, atol=1e-5)

    pipe = teacher.pipeline("ddim")
    assert isinstance(pipe.scheduler, DDIMScheduler)
    settings = pipe.scheduler.config
    assert (settings.timestep_spacing, settings.steps_offset, settings.clip_sample) == ("leading", 1, False)
    explicit = type(teacher.pipe.scheduler).from_config(dict(shaped.BETAS))  # does not set clip_sample
    teacher.pipe.scheduler = DDIMScheduler.from_config(explicit.config)
    assert not teacher.pipeline("ddim").scheduler.config.clip_sample
    assert settings.prediction_type == ("v_prediction" if layout == "sd-v2-1" else "epsilon")
    drawn = draw_latents(pipe, CAPTIONS[:2], [1, 2], steps=2, guidance=7.5, batch=2)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    image = pipe(CAPTIONS[:2], num_inference_steps=2, guidance_scale=7.5, generator=generators, output_type="pt").images
    assert torch.allclose(decode(pipe, drawn) / 2 + 0.5, image, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "sampler", ["ddim", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pndm", "euler", "dpm++"))]
)
def test_a_teacher_in_bf16_starts_from_normal_noise_and_steps_in_fp32(sampler: str, folders: dict[str, Path]) -> None:
    """Noise is drawn in fp32, because torch's normal numbers in bf16 have only 256 levels.

    None of them is beyond 3.33, and their variance is 0.986.
    """
    teacher = Teacher.load(folders["sdxl"], "bf16")
    pipe = teacher.pipeline(sampler)
    shown: list[torch.Tensor] = []
    with teacher.denoiser.register_forward_pre_hook(lambda unet, inputs: shown.append(inputs[0])):
        drawn = draw_latents(pipe, ["a bar"] * 16, list(range(16)), steps=2, guidance=2.0, batch=16)
    generators = [torch.Generator().manual_seed(seed) for seed in range(16)]
    exact = torch.cat([torch.randn(1, 4, 16, 16, generator=each) for each in generators])
    first = pipe.scheduler.scale_model_input(exact * pipe.scheduler.init_noise_sigma, pipe.scheduler.timesteps[0])
    assert shown[0].dtype == torch.bfloat16 and drawn.dtype == torch.float32
    if sampler != "euler":  # its scale depends on the scheduler's current step
        assert torch.equal(shown[0][:16], first.bfloat16())
        assert shown[0].float().abs().max() > 3.5
    assert "step" not in vars(pipe.scheduler) and "scale_model_input" not in vars(pipe.scheduler)


def test_a_damaged_weight_file_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd-v1-4"], tmp_path / "cut")
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    for load in (lambda: Teacher.load(folder, "fp32"), lambda: load_frozen_pipeline(folder, "fp32", "cpu")):
        with pytest.raises(UserError, match=r"text_encoder/model\.safetensors: damaged"):
            load()


@pytest.mark.heavy
def test_what_a_teacher_is_shown_may_be_of_another_size(folders: dict[str, Path]) -> None:
    """Latents of real images may have another size (cache.resolution). SDXL gets it, and FLOP are counted for it."""
    teacher = Teacher.load(folders["sdxl"], "fp32")
    own = flop_per_sample(teacher, teacher.denoiser)
    teacher.latent_side = 8
    assert teacher.encode(teacher.tokenizers(CAPTIONS))["time_ids"][0].tolist() == [64, 64, 0, 0, 64, 64]
    assert 0.25 < flop_per_sample(teacher, teacher.denoiser) / own < 0.4  # text and time cost the same at every size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_students_start_from_the_stored_weights_not_from_the_rounded_ones(
    layout: str, folders: dict[str, Path]
) -> None:
    teacher = Teacher.load(folders[layout], "bf16")
    assert teacher.denoiser.dtype == torch.bfloat16 and teacher.pipe.vae.dtype == torch.float32
    student = build_student("block-base", Architecture.of(teacher.denoiser), 0, teacher.stored_denoiser())
    exact = Teacher.load(folders[layout], "fp32").denoiser.state_dict()
    assert torch.equal(student.state_dict()["conv_in.weight"], exact["conv_in.weight"])
    assert len(teacher.stored_denoiser()) == len(exact)


def change(folder: Path, out: Path, file: str, **settings: object) -> Path:
    """Copies a teacher to `out` and changes settings in one of its JSON files; None removes a key. Returns `out`."""
    shutil.copytree(folder, out)
    found = {**json.loads((out / file).read_text()), **settings}
    (out / file).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return out


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        ("model_index.json", {"_class_name": "SanaPipeline"}, "_class_name is SanaPipeline, expected"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_pred"),
    ],
)
def test_other_kinds_of_teachers_are_refused(
    file: str, settings: dict[str, object], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = change(folders["sd-v1-4"], tmp_path / "odd", file, **settings)
    with pytest.raises(UserError, match=said):
        Teacher.load(folder, "fp32")


@pytest.mark.parametrize("part", ["unet/config.json", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", [None, "{damaged"])
def test_an_incomplete_folder_is_the_users_mistake(
    part: str, content: str | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(PACKAGE / "data/digits/models/teacher", tmp_path / "teacher"))
    (folder / part).unlink()
    if part.startswith("tokenizer"):
        (folder / "tokenizer/vocab.json").unlink()
    if content:
        (folder / part).write_text(content)
    missing = "teacher: incomplete or damaged" if part.startswith("tokenizer") else f"teacher/{part}: is missing"
    expected = f"teacher/{part}: damaged JSON" if content else missing
    with pytest.raises(UserError, match=expected):
        Teacher.load(folder, "fp32")


def test_a_teacher_without_a_discrete_schedule_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    index = change(
        folders["sd-v1-4"], tmp_path / "edm", "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"]
    )
    EDMEulerScheduler().save_pretrained(index / "scheduler")
    with pytest.raises(UserError, match=r"EDMEulerScheduler.* has no beta_schedule; a teacher needs a discrete"):
        Teacher.load(index, "fp32")


def test_an_inpainting_teacher_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sd-v1-4"], tmp_path / "inpainting")
    config = {**shaped.unet_config("sd-v1-4", tiny=True), "in_channels": 9}
    UNet2DConditionModel(**config).save_pretrained(tmp_path / "inpainting" / "unet")
    with pytest.raises(UserError, match="out_channels is 4, expected 9"):
        Teacher.load(tmp_path / "inpainting", "fp32")


def test_the_fingerprint_follows_weights_and_settings_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["sd-v1-4"]
    print_of = Teacher.load(folder, "fp32").fingerprint
    same = shutil.copytree(folder, tmp_path / "same")
    (same / "README.md").write_text("another card")
    (same / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    assert Teacher.load(same, "fp32").fingerprint == print_of
    other = change(folder, tmp_path / "other", "scheduler/scheduler_config.json", beta_end=0.013)
    assert Teacher.load(other, "fp32").fingerprint != print_of


@pytest.mark.parametrize(
    ("layout", "rule"), [("sd-v1-4", "channel-tiny"), ("sd-v2-1", "block-tiny"), ("sdxl", "koala-1b")]
)
def test_the_step_gives_gradients_to_student_and_projectors_alone(
    layout: str, rule: str, folders: dict[str, Path]
) -> None:
    """Every parameter of the teacher requires a gradient here, but the step gives it none."""
    config = load_config(
        "demo-with", [f"teacher.path={folders[layout]}", f"student.rule={rule}", "train.losses.task=1.0"]
    )
    teacher = Teacher.load(folders[layout], "fp32")
    module, distil = build_step(config, teacher)
    frozen = [teacher.denoiser, *teacher.text_encoders, teacher.pipe.vae]
    for network in frozen:
        network.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        latents=torch.randn(3, 4, 16, 16, generator=generator),
        token_ids=teacher.tokenizers(CAPTIONS),
        key=torch.arange(3),
        caption_id=torch.arange(3),
        timesteps=torch.tensor([0, 500, 999]),
        noise_seed=torch.tensor([1, 2, 3]),
        replaced=torch.tensor([False, False, True]),
        null=torch.tensor([False, True, False]),
        unreplaced_in_batch=2,
    )
    losses = distil(module, batch, torch.float32)
    losses.total.backward()
    assert all(p.grad is not None for p in module.parameters())
    assert all(p.grad is None for network in frozen for p in network.parameters())
    assert {"total", "output", "feature", "task"} <= set(losses.terms) and losses.per_sample.shape == (3,)
    assert all(torch.isfinite(term) for term in losses.terms.values())


def test_sharded_weights_are_found_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = Teacher.load(folders["sd-v1-4"], "fp32")
    teacher.denoiser.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    stored, exact = StoredTensors(tmp_path), teacher.denoiser.state_dict()
    assert set(stored) == set(exact) and all(torch.equal(stored[name], exact[name]) for name in exact)


@pytest.mark.heavy
def test_a_v_prediction_student_is_exported_and_draws_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = Teacher.load(folders["sd-v2-1"], "fp32")
    unet = build_student("block-base", Architecture.of(teacher.denoiser), 0, teacher.stored_denoiser()).eval()
    pipe = teacher.pipeline("teacher", unet)
    ours = draw_here(pipe)
    export_student(tmp_path / "student", unet, teacher.folder, "a card")
    assert np.allclose(draw_elsewhere(tmp_path / "student", tmp_path / "drawn.npy"), ours, atol=1e-4)


def test_token_ids_are_those_of_transformers(folders: dict[str, Path]) -> None:
    captions = ["", "a red two", "Ünïcode, \t <|endoftext|> &amp; 3D!", "long " * 200]
    for layout in ("sd-v1-4", "sdxl"):
        teacher = Teacher.load(folders[layout], "fp32")
        ours = teacher.tokenizers(captions)
        for key, name in (("token_ids", "tokenizer"), ("token_ids_2", "tokenizer_2")):
            if (tokenizer := getattr(teacher.pipe, name, None)) is not None:
                settings = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
                assert torch.equal(ours[key], tokenizer(captions, return_tensors="pt", **settings).input_ids)
