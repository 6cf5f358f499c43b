"""Finds a teacher's folder on this machine, or downloads it from the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.denoiser_alone import FILES, PART, REST, put_together
from randcond.model_zoo.checkpoints.hub_files import hub_failure, hub_file

_INDEX = "model_index.json"


def is_hub_id(path: Path | str) -> bool:
    """Returns True if `path` has the form owner/name and does not exist on this machine."""
    return not Path(path).exists() and len(Path(path).parts) == 2 and not str(path).startswith(("/", "."))


def check_reachable(path: Path | str) -> None:
    """Asks the hub for the smallest file of a hub id; does nothing for a folder. Raises errors as hub_file() does."""
    if is_hub_id(path) and _is_alone(path):
        hub_file(path, FILES[0])
        hub_file(REST[str(path)], _INDEX)


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
    if _is_alone(path):
        denoiser = _fetched(path, _download_denoiser)
        hub_file(REST[str(path)], _INDEX)
        pipeline = _fetched(REST[str(path)], _download_rest)
        return put_together(str(path), denoiser, pipeline)
    return _fetched(path, _download)


def _is_alone(path: Path | str) -> bool:
    """Returns True if a hub id has a denoiser and no pipeline. Raises errors as hub_file() does."""
    try:
        hub_file(path, _INDEX)
    except (UserError, ConnectionError):
        if str(path) not in REST:
            raise
        return True
    return False


def _fetched(path: Path | str, download: Callable[..., Path]) -> Path:
    """Returns the folder that `download` returns. It may be here already, and the hub out of reach."""
    try:
        return download(path)
    except Exception as error:
        try:
            return download(path, local_files_only=True)
        except Exception:
            raise hub_failure(str(path), error) from None


def _download(path: Path | str, **options: Any) -> Path:
    """Downloads only what the pipeline needs: no other precisions, no pickles, no code."""
    return Path(DiffusionPipeline.download(str(path), use_safetensors=True, safety_checker=None, **options))


def _download_rest(path: Path | str, **options: Any) -> Path:
    """Downloads a pipeline without its denoiser."""
    without: dict[str, Any] = {PART: None}
    return _download(path, **without, **options)


def _download_denoiser(path: Path | str, **options: Any) -> Path:
    """Downloads the denoiser of a repository that has nothing else."""
    return Path(snapshot_download(str(path), allow_patterns=FILES, **options))
