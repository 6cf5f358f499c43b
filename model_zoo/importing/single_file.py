"""Makes a folder of one file of Stable Diffusion 1.x, 2.x or SDXL, with diffusers' own loader and no network."""

import json
import logging
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import loading
from randcond.model_zoo.checkpoints.layouts import LAYOUTS, TEXT_ENCODERS, VAE, text_config
from randcond.model_zoo.checkpoints.schedule import stored_scheduler
from randcond.model_zoo.families.stable_diffusion import StableDiffusion
from randcond.model_zoo.importing.clip_tokenizer import clip_tokenizer
from randcond.model_zoo.importing.unpickle import tensors_of_pickle

Shapes = Mapping[str, tuple[int, ...]]  # tensor -> shape

_UNET = "model.diffusion_model."
_FIRST = f"{_UNET}input_blocks.0.0.weight"  # conv_in: [width, channels, 3, 3]
_TEXT_WIDTH = f"{_UNET}input_blocks.{{}}.1.transformer_blocks.0.attn2.to_k.weight"  # [.., width of the condition]
_SDXL = "conditioner.embedders.1.model.positional_embedding"
_REFINER = "conditioner.embedders.0.model.text_projection"
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_TO_0 = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # schedules with zero terminal SNR
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_PARTS = (_UNET, "first_stage_model.", "cond_stage_model.", "conditioner.")  # what a pipeline is made of
_INTEGERS = {"I64", "I32", "I16", "I8", "U8", "BOOL"}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # others are written in fp32
_EDM = {"edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"}  # Playground 2.5, CosXL


_TITLES = {"sd-v1-4": "Stable Diffusion 1.x", "sd-v2-1": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}


@dataclass(frozen=True)
class _Kind:
    """What a file holds."""

    layout: str  # a name in LAYOUTS
    side: int  # of a latent
    prediction: str
    to_zero: bool  # whether its noise schedule ends in pure noise

    @property
    def title(self) -> str:
        """What people call all models of this layout."""
        return _TITLES[self.layout]


def import_file(source: Path, target: Path, prediction: str = "", configuration: Path | None = None) -> list[str]:
    """Writes the model of one file to the folder `target`. Returns lines about it.

    Weights keep their values: parts of different dtypes are all written in fp32.

    `prediction`: what the U-Net predicts, for files of Stable Diffusion 2.x, which do not say it.
    `configuration`: a diffusers folder whose JSON files describe a model of other sizes; None: the published sizes.
    Raises UserError naming the file if it is none of these models.
    """
    if configuration is not None and not (configuration / "model_index.json").is_file():
        raise UserError(f"--config: {configuration} has no model_index.json; expected a diffusers folder")
    with TemporaryDirectory(prefix=".import-", dir=target.parent) as folder:
        weights = source
        if source.suffix != ".safetensors":
            weights = Path(folder) / "model.safetensors"
            tensors_of_pickle(source, weights)
        shapes, dtype = _header(weights, source)
        kind = _kind_of(shapes, source, prediction or _said_by(configuration))
        if configuration is None:
            _check_widths(shapes, kind, source)
            configuration = _write_configuration(kind, Path(folder) / "configuration")
        elif kind.prediction != (stated := _said_by(configuration)):
            raise UserError(
                f"{source}: predicts {kind.prediction}, but {configuration} says {stated}; change one of them"
            )
        family = StableDiffusionXLPipeline if kind.layout == "sdxl" else StableDiffusionPipeline
        with loading(source), _quiet_loader():
            try:
                pipe = family.from_single_file(
                    str(weights),
                    config=str(configuration),
                    local_files_only=True,
                    torch_dtype=dtype,
                    **StableDiffusion.pipelines[family],
                )
                pipe.save_pretrained(target, safe_serialization=True)
            except (RuntimeError, SingleFileComponentError) as error:  # a part or a tensor is missing
                reason = next(iter(str(error).splitlines()), "")
                raise UserError(
                    f"{source}: does not hold all of {kind.title} ({reason}); if the model has other sizes, give "
                    f"--config FOLDER, a diffusers folder that describes it"
                ) from error
    said = [f"{kind.title}, predicts {kind.prediction}, {str(dtype).removeprefix('torch.')}"]
    if any(name.startswith("model_ema.") for name in shapes):
        said.append("the file also holds EMA weights, which are left out")
    return said


def _said_by(configuration: Path | None) -> str:
    """Returns what the U-Net of a folder predicts by its scheduler; "" without a folder."""
    return stored_scheduler(configuration).config.get("prediction_type", "epsilon") if configuration else ""


def _header(weights: Path, source: Path) -> tuple[dict[str, tuple[int, ...]], torch.dtype]:
    """Returns the shapes of a file's tensors, and the dtype that holds the values of all of them."""
    try:
        with safe_open(weights, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
            kinds = {part.get_dtype() for name, part in parts.items() if name.startswith(_PARTS)} - _INTEGERS
            dtype = _DTYPES.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
    except SafetensorError as error:
        raise UserError(f"{source}: damaged ({error}); download or copy it again") from None
    return shapes, dtype


def _kind_of(shapes: Shapes, source: Path, prediction: str) -> _Kind:
    """Returns what a file holds. Raises UserError if it is no teacher, or if `prediction` is missing."""
    if _FIRST not in shapes:
        first = ", ".join(sorted(shapes)[:3])
        raise UserError(
            f"{source}: is no Stable Diffusion 1.x, 2.x or SDXL model in one file (no {_FIRST}); it holds {first}, ..."
        )
    if shapes[_FIRST][1] != 4:
        raise UserError(f"{source}: its U-Net takes {shapes[_FIRST][1]} channels (inpainting or editing), expected 4")
    if _REFINER in shapes:
        raise UserError(f"{source}: is SDXL's refiner, which continues images; give the base model")
    if found := sorted(shapes.keys() & _EDM):
        raise UserError(f"{source}: has EDM's noise schedule ({found[0]}); a teacher needs a discrete beta schedule")
    if not any(name.startswith("first_stage_model.") for name in shapes):
        raise UserError(f"{source}: holds no autoencoder (first_stage_model.); give a file that has one")
    if _SDXL not in shapes and any(name.startswith(f"{_UNET}label_emb.") for name in shapes):
        raise UserError(
            f"{source}: its U-Net is shown more than text (label_emb: unCLIP, upscaling); give a text model"
        )
    marked = "v_prediction" if "v_pred" in shapes else ""  # tensors by which trainers mark such models
    prediction, to_zero = prediction or marked, "ztsnr" in shapes
    if _SDXL in shapes:
        return _Kind("sdxl", 128, prediction or "epsilon", to_zero)
    width = shapes.get(_TEXT_WIDTH.format(1), (0,))[-1]
    is_2 = "cond_stage_model.model.token_embedding.weight" in shapes
    if not is_2 and "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" not in shapes:
        raise UserError(f"{source}: holds a U-Net with a condition of width {width}, but no text encoder that fits it")
    if not is_2:
        return _Kind("sd-v1-4", 64, prediction or "epsilon", to_zero)
    if not prediction:
        raise UserError(
            f"{source}: is Stable Diffusion 2.x, and the file does not say what it predicts; give "
            f"--prediction v_prediction (2.0 and 2.1 of 768 pixels) or --prediction epsilon (base, 512 pixels)"
        )
    return _Kind("sd-v2-1", 96 if prediction == "v_prediction" else 64, prediction, to_zero)


def _check_widths(shapes: Shapes, kind: _Kind, source: Path) -> None:
    """Raises UserError if a file's U-Net is not of the published size."""
    layout = LAYOUTS[kind.layout]
    first = 4 if kind.layout == "sdxl" else 1  # the first block with attention
    found = (shapes[_FIRST][0], shapes.get(_TEXT_WIDTH.format(first), (0,))[-1])
    if found != (published := (layout["block_out_channels"][0], layout["cross_attention_dim"])):
        raise UserError(
            f"{source}: its U-Net begins with {found[0]} channels and takes a condition of width {found[1]}, but "
            f"{kind.title} has {published[0]} and {published[1]}; give --config FOLDER, a diffusers folder that "
            f"describes this model (its weights are not read)"
        )


def _write_configuration(kind: _Kind, folder: Path) -> Path:
    """Writes the JSON files and tokenizers of a published model; returns `folder`."""
    is_xl, is_2 = kind.layout == "sdxl", kind.layout == "sd-v2-1"
    family = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    with torch.device("meta"):
        unet = UNet2DConditionModel(**{**LAYOUTS[kind.layout], "sample_size": kind.side})
        vae = AutoencoderKL(**VAE, scaling_factor=0.13025 if is_xl else 0.18215, sample_size=kind.side * 8)
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    scheduler = _scheduler(kind)
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": family.__name__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for number, sizes in enumerate(TEXT_ENCODERS[kind.layout]):
        suffix = "_2" if number else ""
        CLIPTextConfig(**text_config(sizes)).save_pretrained(folder / f"text_encoder{suffix}")
        clip_tokenizer(pad="!" if number or is_2 else None).save_pretrained(folder / f"tokenizer{suffix}")
        encoder = "CLIPTextModelWithProjection" if number else "CLIPTextModel"
        index |= {f"text_encoder{suffix}": ["transformers", encoder]}
        index |= {f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"]}
    if is_xl:
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def _scheduler(kind: _Kind) -> Any:
    """Returns the scheduler that the published model ships with."""
    options = {**_BETAS, "prediction_type": kind.prediction, **(_TO_0 if kind.to_zero else {})}
    if kind.layout == "sdxl":
        return EulerDiscreteScheduler(**{"timestep_spacing": "leading", **options})
    if kind.to_zero or kind.prediction == "v_prediction":  # PNDM has no schedule with zero terminal SNR
        return DDIMScheduler(**options, clip_sample=False, set_alpha_to_one=False)
    return PNDMScheduler(**options, skip_prk_steps=True, set_alpha_to_one=False)


@contextmanager
def _quiet_loader() -> Any:
    """Silences the loader's advice about EMA weights: `import_file` says what it does with them."""
    logger = logging.getLogger("diffusers.loaders.single_file_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
