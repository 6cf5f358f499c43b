"""Finds a teacher's folder on this machine, or downloads it from the hub."""

from pathlib import Path

from diffusers import (
    DiffusionPipeline,
    UNet2DConditionModel,
)

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import loading
from randcond.model_zoo.denoiser.configuration import UNetConfig, complete_config


def unet_config(path: Path | str) -> UNetConfig:
    """Returns a teacher's complete U-Net configuration. For a hub id, only that file is downloaded.

    Raises UserError if there is no such folder or hub id.
    """
    if is_hub_id(path):
        try:
            return complete_config(UNet2DConditionModel.load_config(str(path), subfolder="unet"))
        except (OSError, ValueError) as error:
            raise _not_on_hub(path, error) from None
    with loading(path):
        return complete_config(UNet2DConditionModel.load_config(local_folder(path) / "unet"))


def is_hub_id(path: Path | str) -> bool:
    """Returns True if `path` has the form owner/name and does not exist on this machine."""
    return not Path(path).exists() and len(Path(path).parts) == 2 and not str(path).startswith(("/", "."))


def _not_on_hub(path: Path | str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else ""
    return UserError(
        f"no teacher at {path}: there is no such folder, and the download from the hub failed "
        f"({type(error).__name__}: {reason})"
    )


def local_folder(path: Path | str) -> Path:
    """Returns the teacher's folder on this machine. If `path` is a hub id (owner/name), downloads it first.

    Raises UserError if the folder has no model_index.json, or if the download fails.
    """
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        return folder
    if not is_hub_id(path):
        raise UserError(
            f"no teacher at {path}: expected a diffusers folder with a model_index.json, or a hub id (owner/name)"
        )
    try:  # downloads only what the pipeline needs: no other precisions, no pickles, no code
        return Path(DiffusionPipeline.download(str(path), use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        raise _not_on_hub(path, error) from None
