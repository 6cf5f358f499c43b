"""A teacher's folder on this machine, or fetched from the hub."""

from pathlib import Path

from diffusers import (
    DiffusionPipeline,
    UNet2DConditionModel,
)

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.configuration import UNetConfig, complete_config


def unet_config(path: Path | str) -> UNetConfig:
    """A teacher's complete U-Net configuration; of a hub id, that one file is fetched.

    Raises UserError as `local_folder` does.
    """
    if is_hub_id(path):
        try:
            return complete_config(UNet2DConditionModel.load_config(str(path), subfolder="unet"))
        except (OSError, ValueError) as error:
            raise _not_on_hub(path, error) from None
    return complete_config(UNet2DConditionModel.load_config(local_folder(path) / "unet"))


def is_hub_id(path: Path | str) -> bool:
    """Whether a path is owner/name and nothing on this machine."""
    return not Path(path).exists() and len(Path(path).parts) == 2 and not str(path).startswith(("/", "."))


def _not_on_hub(path: Path | str, error: Exception) -> UserError:
    said = str(error).splitlines()[0] if str(error) else ""
    return UserError(
        f"no teacher at {path}: there is no such folder, and the hub did not give it ({type(error).__name__}: {said})"
    )


def local_folder(path: Path | str) -> Path:
    """The teacher's folder on this machine, downloaded from the hub when `path` is a hub id (owner/name).

    Raises UserError when neither has a model_index.json, saying where it was looked for.
    """
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        return folder
    if not is_hub_id(path):
        raise UserError(
            f"no teacher at {path}: a diffusers folder with a model_index.json, or a hub id (owner/name), is needed"
        )
    try:  # what the pipeline needs and nothing else: no other precisions, no pickles, no code
        return Path(DiffusionPipeline.download(str(path), use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        raise _not_on_hub(path, error) from None
