"""Finds a teacher's folder on this machine, or downloads it from the hub."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.hub_files import hub_failure, hub_file

_INDEX = "model_index.json"


def is_hub_id(path: Path | str) -> bool:
    """Returns True if `path` has the form owner/name and does not exist on this machine."""
    return not Path(path).exists() and len(Path(path).parts) == 2 and not str(path).startswith(("/", "."))


def check_reachable(path: Path | str) -> None:
    """Asks the hub for the smallest file of a hub id; does nothing for a folder. Raises errors as hub_file() does."""
    if is_hub_id(path):
        hub_file(path, _INDEX)


def local_folder(path: Path | str) -> Path:
    """Returns the teacher's folder on this machine. If `path` is a hub id (owner/name), downloads it first.

    Raises UserError if the folder has no model_index.json or the hub refuses, and ConnectionError if the hub is out of
    reach.
    """
    folder = Path(path)
    if (folder / _INDEX).is_file():
        return folder
    if not is_hub_id(path):
        raise UserError(
            f"no teacher at {path}: expected a diffusers folder with a model_index.json, or a hub id (owner/name)"
        )
    hub_file(path, _INDEX)
    try:
        return _download(path)
    except Exception as error:
        try:
            return _download(path, local_files_only=True)  # the whole model may be here, and the hub out of reach
        except Exception:
            raise hub_failure(str(path), error) from None


def _download(path: Path | str, **options: Any) -> Path:
    """Downloads only what the pipeline needs: no other precisions, no pickles, no code."""
    return Path(DiffusionPipeline.download(str(path), use_safetensors=True, safety_checker=None, **options))
