"""Decides which switches that speed up a step are on, where the experiment says `auto`.

In: the `engine:` section and the teacher. Out: the section without `auto`, and a line for the log. What is on was
measured to be faster on a GPU (docs/speed.md), and changes no result. A switch that can't work here stays off.
"""

from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils._triton import has_triton

from randcond.launch.config.engines import AUTO
from randcond.launch.config.sections import Engine
from randcond.model_zoo.teacher import Teacher

NAMES = ("compile", "channels_last", "teacher_graph")


def decided(options: Engine, teacher: Teacher) -> tuple[Engine, str]:
    """Returns the section with a value for each `auto`, and what was decided, "" if nothing was."""
    said = []
    for name in NAMES:  # the later ones depend on the earlier ones
        if getattr(options, name) != AUTO:
            continue
        reason = _WHY_NOT[name](options, teacher)
        change: dict[str, Any] = {name: not reason if name != "compile" else "none" if reason else "whole"}
        options = replace(options, **change)
        shown = name if name != "compile" else "compile: whole"
        said.append(f"{shown} is off ({reason})" if reason else f"{shown} is on")
    return options, "; ".join(said)


def _no_compilation(options: Engine, teacher: Teacher) -> str:
    """Returns why networks should not be compiled here, "" if they should."""
    if teacher.device.type != "cuda":
        return "it pays on a GPU"
    if not has_triton():
        return f"triton is not installed, or does not support {torch.cuda.get_device_name(teacher.device)}"
    return ""


def _no_channels_last(options: Engine, teacher: Teacher) -> str:
    if teacher.device.type != "cuda":
        return "it pays on a GPU"
    if not isinstance(teacher.denoiser, UNet2DConditionModel):
        return "a transformer has no convolutions that would gain"
    return ""


def _no_graph(options: Engine, teacher: Teacher) -> str:
    if teacher.device.type != "cuda":
        return "it needs a GPU"
    if options.compile != "whole":
        return "it needs compile: whole"
    if options.teacher == "sharded":
        return "the teacher is sharded"
    return ""


_WHY_NOT = {"compile": _no_compilation, "channels_last": _no_channels_last, "teacher_graph": _no_graph}
