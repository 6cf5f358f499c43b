"""A U-Net's configuration as plain data, and measurements remembered by configuration."""

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from diffusers import UNet2DConditionModel

UNetConfig = dict[str, Any]


def plain_config(unet: Any) -> UNetConfig:
    """A U-Net's configuration without diffusers' own bookkeeping.

    `_use_default_values` would turn what a rule changed back into defaults, `_name_or_path` names this machine.
    """
    return {key: value for key, value in dict(unet).items() if not key.startswith("_")}


P = ParamSpec("P")
T = TypeVar("T")
Measure = Callable[Concatenate[type[UNet2DConditionModel], Mapping[str, Any], P], T]


def once_per_configuration(measure: Measure[P, T]) -> Measure[P, T]:
    """Remembers what a U-Net class at a configuration came to: a forward takes seconds, and rules share many."""
    known: dict[tuple[object, ...], T] = {}

    @wraps(measure)
    def remembered(model: type[UNet2DConditionModel], config: Mapping[str, Any], *a: P.args, **more: P.kwargs) -> T:
        key = (model, json.dumps(plain_config(config), sort_keys=True), repr((a, more)))
        if key not in known:
            known[key] = measure(model, config, *a, **more)
        return known[key]

    return remembered


def complete_config(stored: Any) -> UNetConfig:
    """A published unet/config.json with the keys it leaves out, as diffusers fills them."""
    with torch.device("meta"):
        return plain_config(UNet2DConditionModel.from_config(stored).config)
