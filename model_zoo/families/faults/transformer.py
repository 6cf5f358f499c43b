"""Reads the configuration of a folder's transformer."""

from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import loading, read_object
from randcond.model_zoo.families.base.family import DenoiserConfig, Family


def stored_transformer(family: Family, folder: Path) -> DenoiserConfig:
    """Returns the complete configuration. Raises UserError naming file and key if it is damaged or not of a square."""
    stored: dict[str, Any] = read_object(folder / "transformer" / "config.json")
    if (side := stored.get("sample_size", 0)) is None or isinstance(side, list):
        where = f"{folder}/transformer/config.json"
        raise UserError(f"{where}: sample_size is {side}, expected the side of a square latent")
    with loading(folder / "transformer"):
        return family.complete(stored)
