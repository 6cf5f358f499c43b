"""The model card of an exported student: teacher, cache, pool, p(t), steps and, if there are any, scores."""

from pathlib import Path

from randcond.launch.config.experiments import to_yaml
from randcond.launch.config.paths import eval_folder
from randcond.launch.config.sections import Config
from randcond.launch.runtime.files import read_record
from randcond.launch.urls import show_url
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.students.registry import find_rule


def model_card(config: Config, weights: str, steps: int, dtype: str = "fp32", student: Path | None = None) -> str:
    """Returns the README.md of an exported student.

    `config`: the configuration of the run; `weights`: raw or ema; `steps`: trained so far; `dtype`: of the exported
    weights; `student`: the exported folder, if it may have been evaluated.
    """
    cache, conditioning = config.cache, config.conditioning
    pool, cached = config.pool, cache.used or cache.size
    extra = [", ".join(map(show_url, pool.read))] if pool.read else []
    if extra and pool.size:
        extra = [f"{pool.size} captions of {extra[0]}"]
    extra += [f"all of {show_url(source)}" for source in pool.also]
    options = ", ".join(f"{key} {value:g}" for key, value in conditioning.p_args.items())
    latents = f"{cache.sampler} {cache.steps}, guidance {cache.guidance:g}"
    if cache.images:
        latents = f"real images of {cache.images}"
    has_own_class = find_rule(config.student.rule).model.__module__.startswith("randcond.")
    loader = "Load it with `randcond.model_zoo.export.load_pipeline`, because diffusers does not have its U-Net class."
    return f"""---
library_name: {"randcond" if has_own_class else "diffusers"}
pipeline_tag: text-to-image
tags: [text-to-image, distillation, random-conditioning]
---

# {config.name}: {config.student.rule}

Distilled with randcond (Random Conditioning, arXiv 2504.02011) from `{config.teacher.path}`.
Contains the {weights} weights in {dtype} after {steps} steps with a global batch of {config.train.global_batch}.
Initialisation: {config.student.init}.{f" {loader}" if has_own_class else ""}

| | |
|---|---|
| cached captions | {cached}, {latents}, seed {cache.seed} |
| words excluded from the cache | {", ".join(cache.exclude) or "none"} |
| caption pool | the cached captions{"".join(f", {source}" for source in extra)} |
| p(t) | {conditioning.p}{f" ({options})" if options else ""}; null captions {conditioning.null:.0%} |

{_scores(config, weights, student) if student else ""}
```yaml
{to_yaml(config)}```
"""


def _scores(config: Config, weights: str, student: Path) -> str:
    """Returns a table of the scores of these weights, with their protocol, or "" if there are none."""
    path = eval_folder(config, weights) / "scores.json"
    scores = read_record(path, "protocol", "splits") if path.is_file() else None
    if scores is None or scores["protocol"]["network"] != folder_fingerprint(student):
        return ""
    names = [name for name, value in next(iter(scores["splits"].values())).items() if isinstance(value, (int, float))]
    lines = [f"| split | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for split, values in scores["splits"].items():
        lines.append(f"| {split} | {' | '.join(f'{values[name]:.4g}' for name in names)} |")
    protocol = ", ".join(f"{key} {value}" for key, value in scores["protocol"].items())
    return "\n".join([*lines, "", f"Protocol: {protocol}.", ""])
