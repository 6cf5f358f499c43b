"""Why the configurations of a Stable Diffusion folder don't suit a teacher."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from transformers import CLIPTextConfig

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import loading, read_object
from randcond.model_zoo.families.base.family import Family


def configuration_faults(family: Family, folder: Path, parts: list[str]) -> Iterator[str]:
    """Yields the faults of the configurations of a folder's networks."""
    is_xl = "text_encoder_2" in parts
    try:
        stored = read_object(folder / "unet" / "config.json")
        with loading(folder / "unet"):
            unet = family.complete(stored)
        vae = read_object(folder / "vae" / "config.json")
        texts = [read_object(folder / part / "config.json") for part in parts if part.startswith("text_encoder")]
        with loading(folder):
            clips = [CLIPTextConfig(**text) for text in texts]
    except UserError as error:
        yield str(error)
        return
    yield from _unet_faults(unet, folder, is_xl, str(stored.get("_diffusers_version", "")))
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


def _unet_faults(unet: Any, folder: Path, is_xl: bool, version: str = "") -> Iterator[str]:
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
