"""The model card of an exported student: teacher, cache, pool, p(t), steps, and the scores once there are some."""

from pathlib import Path

from randcond.launch.config.experiments import to_yaml
from randcond.launch.config.paths import eval_folder
from randcond.launch.config.sections import Config
from randcond.launch.runtime.files import read_json
from randcond.model_zoo.fingerprint import folder_fingerprint
from randcond.model_zoo.students.registry import find_rule


def model_card(config: Config, weights: str, steps: int, dtype: str = "fp32", student: Path | None = None) -> str:
    """The README.md of a student.

    config: the run's own; weights: raw or ema, after so many steps; student: the exported folder that was scored, None
    before any scores.
    """
    cache, p = config.cache, config.conditioning
    pool, cached = config.pool, cache.used or cache.size
    some = f" ({pool.size} of them)" if pool.size else ""
    extra = [*(f"{each}{some}" for each in pool.read), *pool.also]
    options = ", ".join(f"{key} {value:g}" for key, value in p.p_args.items())
    drawn = f"{cache.sampler} {cache.steps}, guidance {cache.guidance:g}"
    if cache.images:
        drawn = f"real images of {cache.images}"
    ours = find_rule(config.student.rule).model.__module__.startswith("randcond.")
    loader = "load it with `randcond.model_zoo.export.load_pipeline` (its U-Net has a class of its own)"
    return f"""---
library_name: {"randcond" if ours else "diffusers"}
pipeline_tag: text-to-image
tags: [text-to-image, distillation, random-conditioning]
---

# {config.name}: {config.student.rule}

Distilled with randcond (Random Conditioning, arXiv 2504.02011) from `{config.teacher.path}`:
{weights} weights in {dtype} after {steps} steps of {config.train.global_batch}, initialised:
{config.student.init}{f"; {loader}" if ours else ""}.

| | |
|---|---|
| cached captions | {cached}, {drawn}, seed {cache.seed} |
| words without images | {", ".join(cache.exclude) or "none"} |
| caption pool | the cached captions{"".join(f", {each}" for each in extra)} |
| p(t) | {p.p}{f" ({options})" if options else ""}; null captions {p.null:.0%} |

{_scores(config, weights, student) if student else ""}
```yaml
{to_yaml(config)}```
"""


def _scores(config: Config, weights: str, student: Path) -> str:
    """The scores of just these weights as a table, with their protocol; empty when there are none."""
    path = eval_folder(config, weights) / "scores.json"
    scored = read_json(path) if path.is_file() else None
    if scored is None or scored["protocol"]["network"] != folder_fingerprint(student):
        return ""
    names = [name for name, value in next(iter(scored["splits"].values())).items() if isinstance(value, (int, float))]
    lines = [f"| split | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for split, values in scored["splits"].items():
        lines.append(f"| {split} | {' | '.join(f'{values[name]:.4g}' for name in names)} |")
    protocol = ", ".join(f"{key} {value}" for key, value in scored["protocol"].items())
    return "\n".join([*lines, "", f"Protocol: {protocol}.", ""])
