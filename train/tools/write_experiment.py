"""Writes the experiment of `randcond init`, and the schema beside it."""

import json
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from randcond.data.captions.caption_lists import read_unique
from randcond.data.teacher_settings import check_side, known_networks
from randcond.launch.config.gpus import find_gpu
from randcond.launch.config.paths import resolve_path, resolve_sources
from randcond.launch.device.here import Here, device_here
from randcond.launch.errors import UserError
from randcond.launch.keys import json_schema
from randcond.launch.runtime.files import write_text
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.families.faults.look import check_teacher
from randcond.model_zoo.networks import denoiser_of
from randcond.model_zoo.students.registry import default_rule
from randcond.train.state.origin import trained_size
from randcond.train.tools.own_experiment import PASSES, choose
from randcond.train.tools.own_yaml import SCHEMA, Own, draft, final


def write_experiment(
    file: Path, teacher: str, captions: list[str], gpu: str, hours: float | None, student: str, size: int | None = None
) -> str:
    """Writes an experiment's YAML file and its schema. Returns what to do next, in words.

    `gpu`: a name of find_gpu(), or "" for the device of this machine. `student`: a rule, or "" for the default one.
    `size`: pixels of an image's side, None for the teacher's own, or those that it was trained on, if it is a student.
    `hours`: None for the fewest that make sense.
    Raises UserError naming the flag if the teacher, the captions, the student or the size can't be used.
    """
    if Path(teacher).is_file():
        raise UserError(
            f"--teacher: {teacher} is a single file; make a folder of it first: "
            f"`{shlex.join(['randcond', 'teacher', 'import', teacher, Path(teacher).stem])}`, then --teacher "
            f"{shlex.quote(Path(teacher).stem)}"
        )
    check_teacher(resolve_path(teacher))
    found, _ = read_unique(resolve_sources(captions))
    here = (
        Here(gpu, find_gpu(gpu)) if gpu else device_here(1, torch.float32 if device().type == "cpu" else torch.bfloat16)
    )
    denoiser = denoiser_of(resolve_path(teacher))
    size = size or trained_size(resolve_path(teacher))
    if size is not None and (networks := known_networks(resolve_path(teacher))):
        check_side("--size", size, networks)
    rule = student or default_rule(denoiser)
    family = denoiser.family
    own = Own(teacher, captions, rule, "fp32" if here.cpu else "bf16", family.flow, family.guidance, size)
    with TemporaryDirectory() as folder:
        sketch = Path(folder) / file.name
        sketch.write_text(draft(own, file), encoding="utf-8")
        choice = choose(sketch, len(found), here, hours)
        text = final(own, file, choice, gpu or here.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    write_text(file.parent / SCHEMA, json.dumps(json_schema(), indent=2) + "\n")
    lines = [
        f"{file}: {own.rule}, {choice.config.cache.size:,} latents, {choice.config.train.steps:,} steps of "
        f"{choice.config.train.global_batch}; about {choice.hours:.2g} hours on {gpu or here.name}",
        *([_few(choice.config.cache.size)] if choice.is_short else []),
        f"next: {shlex.join(['randcond', 'run', 'all', str(file)])}",
    ]
    return "\n".join(lines)


def _few(latents: int) -> str:
    return (
        f"note: the training ends early, after {PASSES:,} passes over its {latents:,} latents; "
        f"with more captions it makes use of more hours"
    )
