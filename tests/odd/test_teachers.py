"""Odd teachers: each is shown in training what its stock pipeline shows it in drawing, or refused before any work."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.families.faults.look import check_teacher, teacher_faults
from randcond.model_zoo.sampler import draw_latents
from randcond.model_zoo.students.registry import student_of
from randcond.model_zoo.teacher import Teacher
from tests.support import shaped

CAPTIONS = ["a red cat", "", "<cat> on a table, <dog>", "long " * 100]


def set_keys(folder: Path, file: str, **settings: object) -> None:
    """Sets keys of a JSON file; a value of DROP removes the key."""
    found = {**json.loads((folder / file).read_text()), **settings}
    (folder / file).unlink()  # the folder's files are links to those of a shared one
    (folder / file).write_text(json.dumps({key: value for key, value in found.items() if value is not DROP}))


DROP = object()


def keys(file: str, **settings: object) -> Callable[[Path], None]:
    return lambda folder: set_keys(folder, file, **settings)


def scheduler(name: str, **settings: object) -> Callable[[Path], None]:
    """Gives a folder another scheduler, with the betas of Stable Diffusion if it takes them."""

    def change(folder: Path) -> None:
        kind = getattr(diffusers, name)
        shutil.rmtree(folder / "scheduler")
        kind.from_config({**shaped.BETAS, **settings}).save_pretrained(folder / "scheduler")
        set_keys(folder, "model_index.json", scheduler=["diffusers", name])

    return change


def inversion(vectors: int) -> Callable[[Path], None]:
    """Adds a concept <cat> of textual inversion with several vectors, and <dog> with one."""

    def change(folder: Path) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
        width = pipe.text_encoder.config.hidden_size
        torch.manual_seed(1)
        pipe.load_textual_inversion(torch.randn(vectors, width), token="<cat>")
        pipe.load_textual_inversion(torch.randn(1, width), token="<dog>")
        shutil.rmtree(folder)
        pipe.save_pretrained(folder)

    return change


def rename_weights(part: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part / old).rename(folder / part / new) and None


def sharded(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="200KB")


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    sorted((folder / "unet").glob("*.safetensors"))[1].unlink()


def without_tensors(part: str, file: str, prefix: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / part / file
        tensors = {name: value for name, value in load_file(path).items() if not name.startswith(prefix)}
        path.unlink()
        save_file(tensors, path, {"format": "pt"})

    return change


def old_attention(folder: Path) -> None:
    """Gives the autoencoder's attention the names that diffusers wrote before version 0.17."""
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        tensors = {name.replace(new, old): value for name, value in tensors.items()}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


def unet(**changes: object) -> Callable[[Path], None]:
    """Gives a folder another U-Net with random weights."""

    def change(folder: Path) -> None:
        layout = "sdxl" if (folder / "text_encoder_2").exists() else "sd-v1-4"
        shutil.rmtree(folder / "unet")
        torch.manual_seed(0)
        UNet2DConditionModel(**{**shaped.unet_config(layout, tiny=True), **changes}).save_pretrained(folder / "unet")

    return change


def extra_code(folder: Path) -> None:
    set_keys(folder, "model_index.json", unet=["my_unet", "MyUNet"])


@dataclass(frozen=True)
class Odd:
    """A teacher: the layout that it is made from, the change, and what its refusal says; "": it is a teacher."""

    layout: str
    change: Callable[[Path], Any]
    said: str = ""


SD, SD2, XL = "sd-v1-4", "sd-v2-1", "sdxl"
SCHEDULER, INDEX, UNET, VAE = (
    "scheduler/scheduler_config.json",
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
)
TOKENIZER, TEXT = "tokenizer/tokenizer_config.json", "text_encoder/config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ODD = {
    # conditions
    "textual inversion of one vector": Odd(SD, inversion(1)),
    "textual inversion of three vectors": Odd(SD, inversion(3)),
    "attention masks": Odd(SD, keys(TEXT, use_attention_mask=True), "config.json: use_attention_mask is true"),
    "attention masks, which SDXL ignores": Odd(XL, keys(TEXT, use_attention_mask=True)),
    "tokenizer without a length": Odd(SD, keys(TOKENIZER, model_max_length=DROP), "model_max_length is missing"),
    "tokenizer of 20 tokens": Odd(SD, keys(TOKENIZER, model_max_length=20)),
    "tokenizer longer than the text encoder": Odd(SD, keys(TOKENIZER, model_max_length=248), "has 77 positions"),
    "tokenizer that pads on the left": Odd(SD, keys(TOKENIZER, padding_side="left"), "padding_side is left"),
    "tokenizer without a pad token": Odd(SD, keys(TOKENIZER, pad_token=DROP)),
    "tokenizer that pads with 0": Odd(SD, keys(TOKENIZER, pad_token="!")),
    "zeros for empty prompts off": Odd(XL, keys(INDEX, force_zeros_for_empty_prompt=False)),
    "text encoder with a projection": Odd(
        SD, keys(INDEX, text_encoder=["transformers", "CLIPTextModelWithProjection"]), "text_encoder is"
    ),
    "text encoder of another kind": Odd(
        SD, keys(INDEX, text_encoder=["transformers", "T5EncoderModel"]), "expected CLIP"
    ),
    "no first text encoder": Odd(XL, keys(INDEX, text_encoder=[None, None]), "text_encoder is"),
    "text encoders that are too narrow": Odd(SD, unet(cross_attention_dim=48), "the text encoders give 16"),
    # schedules
    "zero terminal SNR": Odd(SD2, keys(SCHEDULER, rescale_betas_zero_snr=True)),
    "squared cosine betas": Odd(SD, scheduler("DDIMScheduler", beta_schedule="squaredcos_cap_v2")),
    "trained betas": Odd(SD, scheduler("DDPMScheduler", trained_betas=[0.0001 * (n + 1) for n in range(1000)])),
    "500 timesteps": Odd(SD, scheduler("DDIMScheduler", num_train_timesteps=500)),
    "no betas in the file": Odd(SD, keys(SCHEDULER, beta_start=DROP, beta_end=DROP)),
    "predicts x_0": Odd(SD, scheduler("DDIMScheduler", prediction_type="sample", clip_sample=False)),
    "Karras sigmas": Odd(SD, scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True)),
    "UniPC": Odd(SD, scheduler("UniPCMultistepScheduler")),
    "Euler ancestral": Odd(SD, scheduler("EulerAncestralDiscreteScheduler")),
    "Heun": Odd(SD, scheduler("HeunDiscreteScheduler")),
    "LCM's scheduler": Odd(SD, scheduler("LCMScheduler")),
    "continuous timesteps": Odd(
        XL,
        scheduler("EulerDiscreteScheduler", timestep_type="continuous", prediction_type="v_prediction"),
        "timestep_type is 'continuous'",
    ),
    "continuous timesteps that epsilon ignores": Odd(
        SD, scheduler("EulerDiscreteScheduler", timestep_type="continuous", timestep_spacing="leading", steps_offset=1)
    ),
    "EDM": Odd(SD, scheduler("EDMEulerScheduler"), "has no beta_schedule"),
    "flow matching": Odd(SD, scheduler("FlowMatchEulerDiscreteScheduler"), "has no beta_schedule"),
    "flow sigmas": Odd(
        SD,
        scheduler("DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction"),
        "prediction_type is 'flow_prediction'",
    ),
    "flow sigmas that predict epsilon": Odd(
        SD, scheduler("DPMSolverMultistepScheduler", use_flow_sigmas=True), "use_flow_sigmas is true"
    ),
    "betas of nobody's": Odd(SD, keys(SCHEDULER, beta_schedule="cosine"), "incomplete or damaged .NotImplementedError"),
    "a width that is a text": Odd(SD, keys(TEXT, hidden_size="16"), "incomplete or damaged .Strict"),
    "a prediction type of tomorrow": Odd(SD, keys(SCHEDULER, prediction_type="u"), "prediction_type is 'u', expected"),
    "a scheduler of nobody's": Odd(SD, keys(INDEX, scheduler=["diffusers", "NoScheduler"]), "expected a scheduler of"),
    # U-Nets
    "sample_size null": Odd(SD, keys(UNET, sample_size=None), r"config.json: sample_size is None"),
    "sample_size a pair": Odd(
        SD, keys(UNET, sample_size=[16, 16]), r"sample_size is \[16, 16\]|sample_size is \(16, 16\)"
    ),
    "sample_size of an old diffusers": Odd(SD, keys(UNET, _diffusers_version="0.6.0"), "draws with 64: write 64"),
    "inpainting": Odd(SD, unet(in_channels=9), "out_channels is 4, expected 9"),
    "classes": Odd(SD, unet(num_class_embeds=10), "num_class_embeds is 10"),
    "a projection of the text": Odd(SD, unet(encoder_hid_dim=16), "encoder_hid_dim is 16"),
    "guidance as an input": Odd(SD, unet(time_cond_proj_dim=8), "time_cond_proj_dim is 8"),
    "SDXL without its embedding": Odd(XL, unet(addition_embed_type=None), "addition_embed_type is None"),
    "SDXL with another projection": Odd(
        XL, unet(projection_class_embeddings_input_dim=80), "projection_class_embeddings_input_dim is 80, expected 72"
    ),
    "nested transformer layers": Odd(
        XL,
        unet(
            transformer_layers_per_block=[[1, 1], [1, 2], [2, 1]],
            reverse_transformer_layers_per_block=[[1, 2, 1], [1, 1, 2], [1, 1, 1]],
        ),
    ),
    "upcast attention": Odd(SD2, unet(upcast_attention=True, cross_attention_dim=16, attention_head_dim=(2, 4, 6, 6))),
    # autoencoders
    "a VAE with a shift": Odd(SD, keys(VAE, shift_factor=0.1), "shift_factor is 0.1"),
    "a VAE with means, which SD ignores": Odd(SD, keys(VAE, latents_mean=[0.1] * 4), "latents_mean is"),
    "a VAE with means, which SDXL uses": Odd(XL, keys(VAE, latents_mean=[0.1] * 4, latents_std=[0.9] * 4)),
    "a VAE of 16 channels": Odd(SD, keys(VAE, latent_channels=16), "latent_channels is 16, but the U-Net takes 4"),
    "old names in the VAE": Odd(SD, old_attention),
    "a tiny VAE": Odd(SD, keys(INDEX, vae=["diffusers", "AutoencoderTiny"]), "vae is .*expected AutoencoderKL"),
    # files
    "sharded weights": Odd(SD, sharded),
    "a shard is missing": Odd(SD, without_a_shard, "of the index is missing"),
    "fp16 weights only": Odd(
        SD, rename_weights("unet", WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"), "only in the variant fp16"
    ),
    ".bin weights only": Odd(SD, rename_weights("vae", WEIGHTS, "diffusion_pytorch_model.bin"), "no safetensors, only"),
    "no weights": Odd(SD, lambda folder: (folder / "unet" / WEIGHTS).unlink(), "has no weights"),
    "a layer is missing": Odd(
        SD, without_tensors("unet", WEIGHTS, "mid_block"), "tensors are missing, first mid_block"
    ),
    "another width": Odd(
        SD, keys(UNET, block_out_channels=[32, 64, 96, 64]), "have another size than config.json says"
    ),
    "code of its own": Odd(SD, extra_code, "unet is .*expected UNet2DConditionModel"),
    "a pipeline for images": Odd(XL, keys(INDEX, _class_name="StableDiffusionXLImg2ImgPipeline"), "_class_name is"),
    "Sana": Odd(SD, keys(INDEX, _class_name="SanaPipeline"), "_class_name is SanaPipeline"),
    "called PixArt": Odd(SD, keys(INDEX, _class_name="PixArtAlphaPipeline"), "transformer is None, expected PixArt"),
}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Teachers of the published layouts with fewer layers, because each is loaded twice in a test."""
    root = tmp_path_factory.mktemp("plain-teachers")
    few: dict[str, Any] = {"layers_per_block": 1}
    few_xl = {**few, "transformer_layers_per_block": (1, 1, 2)}
    return {
        layout: shaped.build(layout, root / layout, unet=few_xl if layout == XL else few) for layout in (SD, SD2, XL)
    }


@pytest.mark.parametrize("name", ODD)
def test_an_odd_teacher_is_as_its_pipeline_or_refused(name: str, plain: dict[str, Path], tmp_path: Path) -> None:
    """Prints the list of all teachers and what is said of them: `pytest -s tests/odd/test_teachers.py`."""
    odd = ODD[name]
    folder = Path(shutil.copytree(plain[odd.layout], tmp_path / "teacher", copy_function=os.link))
    odd.change(folder)
    if odd.said:
        with pytest.raises(UserError, match=odd.said) as raised:
            check_teacher(folder)
        assert str(folder) in str(raised.value)
        print(f"\n{name}: refused: {str(raised.value).replace(str(tmp_path), '')}")
        return
    assert list(teacher_faults(folder)) == []
    _compare(folder)
    print(f"\n{name}: equal to its pipeline")


def _compare(folder: Path) -> None:
    """Compares conditions, schedule, target and inputs of the U-Net with those of the stock pipeline."""
    is_xl = (folder / "text_encoder_2").exists()
    options = {} if is_xl else {"safety_checker": None, "requires_safety_checker": False}
    kind = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    stock = kind.from_pretrained(folder, **options)
    stock.set_progress_bar_config(disable=True)
    teacher = Teacher.load(folder, "fp32")

    null = torch.tensor([not caption for caption in CAPTIONS])
    condition = teacher.encode(teacher.tokenizers(CAPTIONS), null)
    if is_xl:
        text, empty, pooled, empty_pooled = stock.encode_prompt(CAPTIONS, device="cpu")
        text[null], pooled[null] = empty[null], empty_pooled[null]
        assert torch.equal(condition["text_embeds"], pooled)
    else:
        text, _ = stock.encode_prompt(CAPTIONS, "cpu", 1, True)
    assert torch.equal(condition["encoder_hidden_states"], text)

    levels = stock.scheduler.alphas_cumprod
    assert torch.allclose(teacher.process.schedule.alphas_cumprod, levels, atol=1e-6)
    assert teacher.process.schedule.config.prediction_type == stock.scheduler.config.prediction_type

    shown: list[dict[str, Any]] = []

    def note(module: Any, inputs: Any, options: Any) -> None:
        shown.append({"sample": inputs[0], "time": torch.as_tensor(inputs[1]).float(), **options})

    with torch.no_grad(), stock.unet.register_forward_pre_hook(note, with_kwargs=True):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        theirs = stock(CAPTIONS[::2][:2], num_inference_steps=2, generator=generators, output_type="latent").images
    own = teacher.pipeline("teacher")
    with own.unet.register_forward_pre_hook(note, with_kwargs=True):
        guidance = 5.0 if is_xl else 7.5
        ours = draw_latents(own, CAPTIONS[::2][:2], [1, 2], steps=2, guidance=guidance, batch=2)
    first, second = shown[0], shown[len(shown) // 2]
    assert torch.equal(first["time"], second["time"])
    assert torch.allclose(first["sample"], second["sample"], atol=1e-5)
    assert torch.allclose(first["encoder_hidden_states"], second["encoder_hidden_states"], atol=1e-6)
    assert torch.allclose(theirs, ours, atol=1e-3, rtol=1e-3)


def test_rules_that_remove_layers_refuse_nested_depths(plain: dict[str, Path]) -> None:
    config = {**shaped.unet_config(XL, tiny=True), "transformer_layers_per_block": [[1, 1], [1, 2], [2, 2]]}
    teacher = Architecture(UNet2DConditionModel, config)
    for rule in ("koala-700m", "koala-1b", "block-base"):
        with pytest.raises(UserError, match="transformer_layers_per_block is"):
            student_of(rule, teacher)
