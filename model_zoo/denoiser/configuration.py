"""A U-Net's configuration as plain data, and a cache for measurements of configurations."""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from diffusers import UNet2DConditionModel

UNetConfig = dict[str, Any]


def plain_config(unet: Any) -> UNetConfig:
    """Returns a U-Net's configuration without diffusers' private keys.

    `_use_default_values` would reset values that a rule changed. `_name_or_path` holds a local path.
    """
    return {key: value for key, value in dict(unet).items() if not key.startswith("_")}


P = ParamSpec("P")
T = TypeVar("T")
Measure = Callable[Concatenate[type[UNet2DConditionModel], Mapping[str, Any], P], T]


def once_per_configuration(measure: Measure[P, T]) -> Measure[P, T]:
    """Caches a measurement of a U-Net class by class, configuration and arguments.

    A measurement runs a forward pass, which takes seconds, and many rules share configurations.
    """
    cache: dict[tuple[object, ...], T] = {}
    signature = inspect.signature(measure)

    @wraps(measure)
    def cached(model: type[UNet2DConditionModel], config: Mapping[str, Any], *args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(model, config, *args, **kwargs)
        given.apply_defaults()  # an argument at its default is the same measurement
        key = (model, json.dumps(plain_config(config), sort_keys=True), repr(list(given.arguments.items())[2:]))
        if key not in cache:
            cache[key] = measure(model, config, *args, **kwargs)
        return cache[key]

    return cached


def complete_config(stored: Any) -> UNetConfig:
    """Returns the contents of a unet/config.json, with missing keys set to diffusers' defaults."""
    with torch.device("meta"):
        return plain_config(UNet2DConditionModel.from_config(stored).config)
