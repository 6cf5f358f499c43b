"""The model card of an exported student: usage, licence, teacher, cache, pool, p(t), steps and, if any, scores."""

from pathlib import Path
from typing import Any

import yaml

from randcond.eval.tables.protocol_words import protocol_in_words
from randcond.launch.config.experiments import shown_dict
from randcond.launch.config.paths import eval_folder
from randcond.launch.config.sections import Config
from randcond.launch.runtime.files import read_record
from randcond.launch.urls import show_url
from randcond.model_zoo.checkpoints.diffusers_folder import is_local_path
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.export import licence_files
from randcond.model_zoo.families.base.family import Family
from randcond.model_zoo.families.registry import pipeline_of
from randcond.model_zoo.students.registry import find_rule
from randcond.train.state.origin import earlier_in_words, earlier_teachers, of_student, of_teacher

_OF_THIS_MACHINE = {"paths": None, "cache": ("local", "local_gb"), "pool": ("whole",)}  # sections or keys; not shown
_SNIPPET = """```python
import torch
from diffusers import DiffusionPipeline

device, dtype = ("cuda", torch.{half}) if torch.cuda.is_available() else ("cpu", torch.float32)
# "." is this folder; its path, or its name on the hub, does as well
pipe = DiffusionPipeline.from_pretrained(".", torch_dtype=dtype).to(device)
image = pipe(prompt="a photo of a red bus", num_inference_steps=25, {call}).images[0]
image.save("image.png")
```"""
_OWN_CLASS = """diffusers does not have its U-Net class, so randcond loads it:

```python
from pathlib import Path

from randcond.model_zoo.export import load_pipeline

pipe = load_pipeline(Path("."))  # this folder
image = pipe(prompt="a photo of a red bus", num_inference_steps=25, {call}).images[0]
image.save("image.png")
```"""


def model_card(
    config: Config, weights: str, steps: int, source: Path, dtype: str = "fp32", student: Path | None = None
) -> str:
    """Returns the README.md of an exported student.

    `config`: the configuration of the run; `weights`: raw or ema; `steps`: trained so far; `source`: the folder that
    the other parts are copied from, the teacher's; `dtype`: of the exported weights; `student`: the exported folder, if
    it may have been evaluated.
    """
    train = config.train
    teacher = _public(config.teacher.path)
    origin = (of_student(student) if student else None) or of_teacher(config.teacher.path, source)
    has_own_class = not find_rule(config.student.full_rule).is_of_diffusers
    pipeline, family = pipeline_of(source)
    tags = ["text-to-image", family.tag(pipeline), "distillation"]
    front = {
        "library_name": "randcond" if has_own_class else "diffusers",
        "pipeline_tag": "text-to-image",
        **origin.front_matter,
        "tags": [*tags, "random-conditioning"],
    }
    start = f"the student {_public(config.student.earlier, 2)}" if config.student.earlier else config.student.init
    before = "".join(f", which was distilled from `{each}`" for each in earlier_teachers(source))
    licence = [origin.in_words(teacher, licence_files(source))]
    licence += [earlier_in_words(Path(config.student.earlier), origin)] if config.student.earlier else []
    usage = (_OWN_CLASS if has_own_class else _SNIPPET).format(
        call=_call(config, family), half="float16" if family.part == "unet" else "bfloat16"
    )
    schedule = train.schedule + (f", {train.warmup} steps of warm-up" if train.warmup else "")
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {config.name}: {config.student.full_rule}

Distilled with randcond (Random Conditioning, arXiv 2504.02011) from `{teacher}`{before}.
Contains the {weights} weights in {dtype} after {steps} steps with a global batch of {train.global_batch}.
Initialisation: {start}. Learning rate: {train.lr:g}, {schedule}.

## Usage

{usage}

## Licence

{" ".join(filter(None, licence))} A safety checker is not included.

## Training

{_facts(config)}

{_scores(config, weights, student) if student else ""}
```yaml
{_settings(config)}```
"""


def _call(config: Config, family: Family) -> str:
    """Returns the arguments with which a pipeline draws what the student was trained on."""
    pixels, tokens = config.cache.resolution, config.teacher.text_tokens
    words = [f"guidance_scale={config.cache.guidance:g}"]
    words += [f"{name}={value}" for name, value in family.call_options.items()]
    words += [f"height={pixels}, width={pixels}"] if pixels else []
    words += [f"max_sequence_length={tokens}"] if tokens else []
    return ", ".join(words)


def _facts(config: Config) -> str:
    """Returns a table of what the student was trained on."""
    cache, conditioning, pool = config.cache, config.conditioning, config.pool
    extra = [", ".join(_public(show_url(source)) for source in pool.read)] if pool.read else []
    if extra and pool.size:
        extra = [f"{pool.size} captions of {extra[0]}"]
    extra += [f"all of {_public(show_url(source))}" for source in pool.also]
    options = "".join(f", {key} {value:g}" for key, value in conditioning.p_args.items())
    sampler = "the teacher's own sampler" if cache.sampler == "teacher" else cache.sampler.upper()
    latents = f"{sampler} with {cache.steps} steps, guidance {cache.guidance:g}"
    if cache.images:
        latents = f"real images of {_public(show_url(cache.images))}"
    return f"""| | |
|---|---|
| cached captions | {cache.used or cache.size}, {latents}, seed {cache.seed} |
| words excluded from the cache | {", ".join(cache.exclude) or "none"} |
| caption pool | the cached captions{"".join(f", {source}" for source in extra)} |
| p(t) | {conditioning.p} (of {conditioning.of}{options}); null captions {conditioning.null:.0%} |
| timesteps | {config.train.timesteps}{f", shift {config.train.shift:g}" if config.train.shift else ""} |"""


def _public(path: str, parts: int = 1) -> str:
    """Returns what a reader elsewhere may see: of a path of this machine its last `parts`, anything else whole."""
    return "/".join(Path(path).parts[-parts:]) if is_local_path(path) else path


def _settings(config: Config) -> str:
    """Returns the resolved configuration as YAML, without what is of this machine alone."""
    settings = shown_dict(config)
    for section, keys in _OF_THIS_MACHINE.items():
        if keys is None:
            del settings[section]
        for key in keys or ():
            del settings[section][key]
    return yaml.safe_dump(_shown(settings), sort_keys=False)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return _public(value) if isinstance(value, str) else value


def _scores(config: Config, weights: str, student: Path) -> str:
    """Returns a table of the scores of these weights, with their protocol, or "" if there are none."""
    path = eval_folder(config, weights) / "scores.json"
    scores = read_record(path, "protocol", "splits") if path.is_file() else None
    if scores is None or scores["protocol"]["network"] != folder_fingerprint(student):
        return ""
    names = [name for name, value in next(iter(scores["splits"].values())).items() if isinstance(value, (int, float))]
    if names == ["images"]:  # drawn without a metric
        return ""
    lines = [f"| split | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for split, values in scores["splits"].items():
        lines.append(f"| {split} | {' | '.join(f'{values[name]:.4g}' for name in names)} |")
    return "\n".join([*lines, "", f"Protocol: {protocol_in_words(scores['protocol'])}.", ""])
