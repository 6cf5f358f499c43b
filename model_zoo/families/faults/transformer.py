"""Reads the configurations that the faults of a transformer's folder are found in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import loading, read_object
from randcond.model_zoo.families.base.family import DenoiserConfig, Family


def stored_configurations(
    family: Family, folder: Path, texts: Mapping[str, type]
) -> tuple[DenoiserConfig, dict[str, Any], list[Any]]:
    """Returns the configurations of the transformer, complete, of the VAE as stored, and of the text encoders.

    texts: part -> its configuration class of transformers.
    Raises UserError naming file and key if one is damaged, or if the transformer's latents are not square.
    """
    stored = read_object(folder / "transformer" / "config.json")
    if (side := stored.get("sample_size", 0)) is None or isinstance(side, list):
        where = f"{folder}/transformer/config.json"
        raise UserError(f"{where}: sample_size is {side}, expected the side of a square latent")
    with loading(folder / "transformer"):
        transformer = family.complete(stored)
    vae = read_object(folder / "vae" / "config.json")
    found = []
    for part, kind in texts.items():
        text = read_object(folder / part / "config.json")
        with loading(folder / part):
            found.append(kind(**text))
    return transformer, vae, found
