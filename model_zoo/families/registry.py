"""The families that randcond knows, and how to find the one of a folder or a network."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import class_name
from randcond.model_zoo.families.family import Family
from randcond.model_zoo.families.stable_diffusion import StableDiffusion

FAMILIES: tuple[Family, ...] = (StableDiffusion(),)
PIPELINES = {pipeline.__name__: (pipeline, family) for family in FAMILIES for pipeline in family.pipelines}


def family_of(model: type[nn.Module]) -> Family:
    """Returns the family of a denoiser's class, or of a class derived from it."""
    return next(family for family in FAMILIES if issubclass(model, family.model))


def pipeline_of(folder: Path) -> tuple[type[DiffusionPipeline], Family]:
    """Returns the pipeline class of a diffusers folder, and its family.

    Raises UserError listing the supported classes if the folder declares another one.
    """
    name = class_name(folder / "model_index.json")
    if name not in PIPELINES:
        raise UserError(f"{folder}/model_index.json: _class_name is {name}, expected {' or '.join(PIPELINES)}")
    return PIPELINES[name]


def family_of_folder(folder: Path) -> Family:
    """Returns the family of a diffusers folder. Raises UserError as pipeline_of() does."""
    return pipeline_of(folder)[1]


def with_parts(pipe: Any, **parts: Any) -> Any:
    """Returns a pipeline of the same class and options, with `parts` replacing its own."""
    pipeline, family = PIPELINES[type(pipe).__name__]
    options = {key: pipe.config[key] for key in family.kept_options if key in pipe.config}
    return pipeline(**{**pipe.components, **options, **parts, **family.pipelines[pipeline]})
