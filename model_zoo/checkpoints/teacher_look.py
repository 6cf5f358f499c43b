"""Looks at a diffusers folder without loading weights: can it be a teacher, and if not, why?

In training a teacher is shown what its own pipeline shows it in drawing. A folder for which that can't be repeated
exactly is refused here, by file and key, before any work.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from packaging.version import InvalidVersion, Version
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import (
    PART_CLASSES,
    check_files,
    loading,
    pipeline_class,
    read_object,
)
from randcond.model_zoo.checkpoints.hub import is_hub_id
from randcond.model_zoo.checkpoints.schedule import noise_schedule, stored_scheduler
from randcond.model_zoo.checkpoints.tokenizers import Tokenizer
from randcond.model_zoo.checkpoints.weight_files import weight_faults
from randcond.model_zoo.denoiser.configuration import complete_config

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_PROBES = ["", "a red cat", "Naïve façade №5 — 猫, 🐈!", "one two three " * 100]  # tokenizers may differ on these


def check_teacher(path: Path | str) -> None:
    """Raises UserError with one line per reason why a folder can't be a teacher.

    Loads no weights. Does nothing for a hub id, because its files may not be here yet.
    """
    if is_hub_id(path):
        return
    if faults := list(teacher_faults(Path(path))):
        raise UserError("\n".join(faults))


def check_configurations(folder: Path) -> None:
    """Raises UserError with one line per fault of a folder's configurations. Looks at no tokenizers and weights."""
    if faults := list(configuration_faults(folder, _parts(folder))):
        raise UserError("\n".join(faults))


def teacher_faults(folder: Path) -> Iterator[str]:
    """Yields one line per reason why a folder can't be a teacher, naming file and key. Loads no weights."""
    if is_hub_id(folder):
        yield f"{folder}: is no folder here; the model of a hub id is looked at when it is downloaded"
        return
    if not (folder / "model_index.json").is_file():
        yield f"no teacher at {folder}: expected a diffusers folder with a model_index.json, or a hub id (owner/name)"
        return
    try:
        parts = _parts(folder)
    except UserError as error:
        yield str(error)
        return
    for look in (configuration_faults, _tokenizer_faults):
        yield from look(folder, parts)
    for part, network in _networks(folder, parts):
        yield from weight_faults(folder / part, network)


def _parts(folder: Path) -> list[str]:
    """Returns the parts that a teacher is loaded from.

    Raises UserError if pipeline or part is of another class, a file is damaged, or the noise schedule does not suit.
    """
    is_xl = pipeline_class(folder) is StableDiffusionXLPipeline
    check_files(folder)
    noise_schedule(stored_scheduler(folder), folder)
    index = read_object(folder / "model_index.json")
    parts = [part for part in PART_CLASSES if is_xl or not part.endswith("_2")]
    for part in parts:
        entry = index.get(part)
        library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        expected_library = "diffusers" if part in ("unet", "vae") else "transformers"
        if name not in PART_CLASSES[part] or library != expected_library:
            expected = " or ".join(PART_CLASSES[part])
            raise UserError(f"{folder}/model_index.json: {part} is {entry}, expected {expected} of {expected_library}")
    return parts


def configuration_faults(folder: Path, parts: list[str]) -> Iterator[str]:
    """Yields the faults of the configurations of a folder's networks."""
    is_xl = "text_encoder_2" in parts
    try:
        stored = read_object(folder / "unet" / "config.json")
        with loading(folder / "unet"):
            unet = complete_config(stored)
        vae = read_object(folder / "vae" / "config.json")
        texts = [read_object(folder / part / "config.json") for part in parts if part in _TOKENIZERS]
        with loading(folder):
            clips = [CLIPTextConfig(**text) for text in texts]
    except UserError as error:
        yield str(error)
        return
    yield from unet_faults(unet, folder, is_xl, str(stored.get("_diffusers_version", "")))
    yield from _vae_faults(vae, unet, folder, is_xl)
    widths = sum(clip.hidden_size for clip in clips)
    wanted = unet["cross_attention_dim"]
    if set(wanted if isinstance(wanted, list | tuple) else [wanted]) != {widths}:
        yield f"{folder}/unet/config.json: cross_attention_dim is {wanted}, but the text encoders give {widths}"
    if is_xl and unet.get("addition_embed_type") == "text_time" and unet.get("addition_time_embed_dim"):
        width = 6 * unet["addition_time_embed_dim"] + clips[-1].projection_dim
        if unet.get("projection_class_embeddings_input_dim") != width:
            found = unet.get("projection_class_embeddings_input_dim")
            yield f"{folder}/unet/config.json: projection_class_embeddings_input_dim is {found}, expected {width}"
    if not is_xl and texts[0].get("use_attention_mask"):
        yield (
            f"{folder}/text_encoder/config.json: use_attention_mask is true, so the pipeline masks padding; training "
            f"has no such mask, expected false"
        )


def unet_faults(unet: Any, folder: Path, is_xl: bool, version: str = "") -> Iterator[str]:
    """Yields why a U-Net configuration does not suit a text-to-image teacher.

    Such a U-Net predicts the channels of x_t from x_t, t and text alone. SDXL has its `text_time` embedding.
    `version`: of the diffusers that wrote it.
    """
    file, size = f"{folder}/unet/config.json", unet.get("sample_size")
    if type(size) is not int:
        yield (
            f"{file}: sample_size is {size!r}, expected the side of a square latent: write the one that the model was "
            f"trained with, such as 64 for images of 512 pixels"
        )
    elif size < 64 and not is_xl and _is_before_0_9(version):
        yield f"{file}: sample_size is {size}, but the pipeline of such an old folder draws with 64: write 64"
    required = {
        "out_channels": unet["in_channels"],
        "class_embed_type": None,
        "num_class_embeds": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "time_cond_proj_dim": None,
        "addition_embed_type": "text_time" if is_xl else None,
    }
    for key, value in required.items():
        if unet.get(key) != value:
            yield (
                f"{file}: {key} is {unet.get(key)!r}, expected {value!r}; a teacher must predict the channels of x_t "
                f"from text alone"
            )


def _is_before_0_9(version: str) -> bool:
    try:
        return Version(Version(version).base_version) < Version("0.9.0.dev0")
    except InvalidVersion:
        return False


def _vae_faults(vae: dict[str, Any], unet: Any, folder: Path, is_xl: bool) -> Iterator[str]:
    file, channels = f"{folder}/vae/config.json", vae.get("latent_channels", 4)
    if channels != unet["in_channels"]:
        yield f"{file}: latent_channels is {channels}, but the U-Net takes {unet['in_channels']}"
    for key in ("shift_factor",) if is_xl else ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(key) is not None:
            yield f"{file}: {key} is {vae[key]}, which the pipeline does not use; expected null"


def _tokenizer_faults(folder: Path, parts: list[str]) -> Iterator[str]:
    """Yields where token ids differ from those of the pipeline, or don't fit the text encoder."""
    index = read_object(folder / "model_index.json")
    for encoder, part in _TOKENIZERS.items():
        if part not in parts:
            continue
        where = folder / part
        try:
            with loading(where):
                tokenizer = getattr(transformers, index[part][1]).from_pretrained(where, local_files_only=True)
                text = CLIPTextConfig(**read_object(folder / encoder / "config.json"))
            ours = Tokenizer(tokenizer, str(where))
        except UserError as error:
            yield str(error)
            continue
        length = tokenizer.model_max_length
        if length > text.max_position_embeddings:
            yield (
                f"{where}/tokenizer_config.json: model_max_length is {length}, but the text encoder has "
                f"{text.max_position_embeddings} positions"
            )
        if len(tokenizer) > text.vocab_size:
            yield f"{where}: has {len(tokenizer)} tokens, but the text encoder knows {text.vocab_size}"
        theirs = tokenizer(_PROBES, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        if not torch.equal(ours(_PROBES), theirs.input_ids):
            yield f"{where}: encodes captions differently from its tokenizer.json; save it again with transformers"


def _networks(folder: Path, parts: list[str]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yields each network of a folder on the meta device; leaves out one whose configuration is wrong."""
    makers: dict[str, Callable[[dict[str, Any]], torch.nn.Module]] = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda stored: CLIPTextModel(CLIPTextConfig(**stored)),
        "text_encoder_2": lambda stored: CLIPTextModelWithProjection(CLIPTextConfig(**stored)),
    }
    for part in parts:
        if part not in makers:
            continue
        try:
            with torch.device("meta"), loading(folder / part):
                network = makers[part](read_object(folder / part / "config.json"))
        except UserError:
            continue  # configuration_faults() has named it
        yield part, network
