"""The families that randcond knows, and how to find the one of a folder or a network."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import class_name, read_object
from randcond.model_zoo.families.base.family import Family
from randcond.model_zoo.families.flux2 import Flux2
from randcond.model_zoo.families.pixart import PixArt
from randcond.model_zoo.families.stable_diffusion import StableDiffusion
from randcond.model_zoo.families.stable_diffusion_3 import StableDiffusion3

FAMILIES: tuple[Family, ...] = (StableDiffusion(), PixArt(), StableDiffusion3(), Flux2())
PIPELINES = {pipeline.__name__: (pipeline, family) for family in FAMILIES for pipeline in family.pipelines}


def family_of(model: type[nn.Module]) -> Family:
    """Returns the family of a denoiser's class, or of a class derived from it."""
    return next(family for family in FAMILIES if issubclass(model, family.model))


def family_named(model: str) -> Family:
    """Returns the family of a denoiser's class, given the class's name."""
    return next(family for family in FAMILIES if family.model.__name__ == model)


def pipeline_of(folder: Path) -> tuple[type[DiffusionPipeline], Family]:
    """Returns the pipeline class of a diffusers folder, and its family.

    Raises UserError listing the supported classes if the folder declares another one.
    """
    return pipeline_named(class_name(folder / "model_index.json"), folder)


def pipeline_named(name: object, folder: Path | str) -> tuple[type[DiffusionPipeline], Family]:
    """Returns what pipeline_of() does, given the class name that a folder's model_index.json declares."""
    if not isinstance(name, str) or name not in PIPELINES:
        raise UserError(f"{folder}/model_index.json: _class_name is {name}, expected {' or '.join(PIPELINES)}")
    return PIPELINES[name]


def family_of_folder(folder: Path) -> Family:
    """Returns the family of a diffusers folder. Raises UserError as pipeline_of() does."""
    return pipeline_of(folder)[1]


def load_options(folder: Path) -> dict[str, Any]:
    """Returns the constructor options of a folder's pipeline that are not part of the model.

    diffusers loads a pipeline without one of its networks only if None is passed for it.
    """
    pipeline, family = pipeline_of(folder)
    index = read_object(folder / "model_index.json")
    absent = {part: None for part in family.classes if index.get(part) == [None, None]}
    return {**absent, **family.pipelines[pipeline]}


def family_of_pipeline(pipe: Any) -> Family | None:
    """Returns the family of a loaded pipeline, None if it is of none."""
    found = PIPELINES.get(type(pipe).__name__)
    return found[1] if found else None


def pixels_per_latent(pipe: Any) -> int:
    """Returns how many pixels along a side one position of the denoiser's latents stands for. pipe: a pipeline."""
    family = family_of_pipeline(pipe)
    return int(pipe.vae_scale_factor * (family.packing if family else 1))


def with_parts(pipe: Any, **parts: Any) -> Any:
    """Returns a pipeline of the same class and options, with `parts` replacing its own."""
    pipeline, family = PIPELINES[type(pipe).__name__]
    options = {key: pipe.config[key] for key in family.kept_options if key in pipe.config}
    return pipeline(**{**pipe.components, **options, **parts, **family.pipelines[pipeline]})
