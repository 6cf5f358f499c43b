"""Why the configurations of a PixArt folder don't suit a teacher."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import T5Config

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import class_name, read_object
from randcond.model_zoo.families.base.family import Family
from randcond.model_zoo.families.faults.transformer import stored_configurations

FIRST_CLASS = "Transformer2DModel"  # the transformer's class in the published folders, which are older than its own
_NORM = "ada_norm_single"  # PixArt's, among the networks of that class


def configuration_faults(family: Family, folder: Path, parts: list[str]) -> Iterator[str]:
    """Yields the faults of the configurations of a folder's networks."""
    where = f"{folder}/transformer/config.json"
    try:
        stored = read_object(folder / "transformer" / "config.json")
        if class_name(folder / "transformer" / "config.json") == FIRST_CLASS and stored.get("norm_type") != _NORM:
            yield f"{where}: norm_type is {stored.get('norm_type')}, expected {_NORM}, as PixArt has"
            return
        transformer, vae, [t5] = stored_configurations(family, folder, {"text_encoder": T5Config})
    except UserError as error:
        yield str(error)
        return
    channels = transformer["in_channels"]
    if channels != vae.get("latent_channels", 4):
        yield f"{where}: in_channels is {channels}, but the VAE's latents have {vae.get('latent_channels', 4)}"
    if transformer["out_channels"] not in (None, channels, 2 * channels):
        yield f"{where}: out_channels is {transformer['out_channels']}, expected {channels}, or twice that many"
    if transformer["caption_channels"] != t5.d_model:
        yield f"{where}: caption_channels is {transformer['caption_channels']}, but T5 gives {t5.d_model}"
    yield from _size_faults(transformer, folder, where)
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(key) is not None:
            yield f"{folder}/vae/config.json: {key} is {vae[key]}, which the pipeline does not use; expected null"


def has_sizes(config: Mapping[str, Any]) -> bool:
    """Returns True if the transformer is given the image's resolution and aspect ratio."""
    given = config["use_additional_conditions"]
    return config["sample_size"] == 128 if given is None else bool(given)


def _size_faults(transformer: Mapping[str, Any], folder: Path, where: str) -> Iterator[str]:
    """Yields where the pipeline gives the transformer other sizes than it was made for."""
    takes, given = has_sizes(transformer), transformer["use_additional_conditions"]
    is_alpha = class_name(folder / "model_index.json") == "PixArtAlphaPipeline"
    gives = is_alpha and transformer["sample_size"] == 128
    if takes != gives:
        yield (
            f"{where}: use_additional_conditions is {given}, but the pipeline "
            f"{'gives' if gives else 'does not give'} the transformer the image's resolution; expected {gives}"
        )
