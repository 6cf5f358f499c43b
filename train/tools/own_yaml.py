"""The YAML file that `randcond init` writes: every line says what it does."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from randcond.train.tools.own_experiment import Choice

SCHEMA = "randcond.schema.json"  # beside the YAML file; editors complete the keys with it


@dataclass(frozen=True)
class Own:
    """What a person brings."""

    teacher: str
    captions: Sequence[str]  # caption sources
    rule: str
    dtype: str  # bf16; fp32 is faster on a CPU
    flow: bool = False  # the teacher was trained by flow matching
    guidance: float = 7.5  # scale of classifier-free guidance
    size: int | None = None  # pixels of an image's side; None: the teacher's own


def draft(own: Own, file: Path) -> str:
    """Returns an experiment in which the sizes are not chosen yet. `file`: the one that it is for."""
    return _text(own, file, Sizes(), [])


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run, by their keys."""

    latents: int = 1024
    shard_size: int = 1024
    steps: int = 1000
    global_batch: int = 256
    drawn: int = 64  # images of the evaluation
    grids: bool = True  # pictures during the training
    savers: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value that saves memory


def final(own: Own, file: Path, choice: Choice, device: str) -> str:
    """Returns the experiment with the chosen sizes, and what they take on the device."""
    config = choice.config
    sizes = Sizes(
        latents=config.cache.size,
        shard_size=config.cache.shard_size,
        steps=config.train.steps,
        global_batch=config.train.global_batch,
        drawn=config.eval.size or 64,
        grids=config.train.sample_every > 0,
        savers=choice.savers,
    )
    head = [
        f"predicted on one {device}: {choice.hours:.3g} hours, {choice.samples_per_second:.3g} samples/s in training",
        *(
            f"  {row.stage:6}{f'{row.needed_gb:.1f} GB of memory' if row.needed_gb else '':20}"
            f"{row.disk_gb:8.1f} GB on disk{row.hours:10.2g} hours"
            for row in choice.stages
        ),
        f"`randcond run check {_word(file)}` checks it and shows what each stage takes, and runs nothing.",
    ]
    return _text(own, file, sizes, head)


def _text(own: Own, file: Path, sizes: Sizes, head: list[str]) -> str:
    """Returns the YAML file. `head`: lines of the comment at its top."""
    sources, runs = _quoted(list(own.captions)), f"runs/{file.stem}"
    steps = sizes.steps
    saved = max(10, steps // 20)
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# A student of your own teacher, run by `randcond run all {_word(file)}`. It can be stopped and continued.",
        *(f"# {line}" for line in head),
        "",
        "teacher:",
        f"  path: {_quoted(own.teacher)} # diffusers folder or hub id of the model that is distilled",
        f"  dtype: {sizes.savers.get('teacher.dtype', own.dtype)} # of its weights and activations",
        *(line for line in _saved(sizes, "teacher") if not line.startswith("  dtype:")),
        "",
        "student:",
        f"  rule: {own.rule} # which layers the student keeps; `randcond students` lists all rules with their sizes",
        f"  init: {_init(own.rule)} # teacher: copies the teacher's weights; random: needs many more steps",
        "",
        "cache: # captions whose latents the teacher draws once",
        f"  captions: {sources} # caption files: txt, csv, tsv, jsonl or parquet",
        f"  size: {sizes.latents} # N, number of latents; the paper has 212,776",
        f"  shard_size: {sizes.shard_size} # latents per file; work that is lost if the machine stops",
        "  batch: null # samples at once; null: the largest that fits",
        "  steps: 25 # sampling steps per latent",
        f"  guidance: {own.guidance} # scale of classifier-free guidance",
        *_sampler(own),
        *_size(own),
        "",
        "pool: # captions that replace the drawn ones; give as many as you have, also of what the cache does not show",
        f"  sources: {sources} # caption files",
        "",
        "conditioning:",
        "  p: exponential # probability p(t) that a caption is replaced; none: plain distillation",
        *_level(own),
        "",
        "train:",
        f"  steps: {steps} # optimizer steps; may be raised later, the run then continues",
        f"  global_batch: {sizes.global_batch} # samples per step; the paper has 256",
        "  lr: 5e-5 # learning rate of AdamW",
        *_saved(sizes, "train"),
        f"  warmup: {min(500, steps // 20)} # steps until the learning rate is reached",
        f"  log_every: {max(1, min(50, steps // 20))} # steps between lines of the log",
        f"  checkpoint_every: {saved} # steps; work that is lost if the machine stops",
        "  keep_checkpoints: 2 # newest checkpoints that are kept",
        f"  sample_every: {5 * saved if sizes.grids else 0} # steps between pictures of teacher and student; 0: none"
        f"{'' if sizes.grids else ', because they would not fit beside the training'}",
        "",
        "engine:",
        f"  precision: {own.dtype} # of the student's passes; its weights are kept in fp32",
        "  micro_batch: null # samples at once; null: the largest that fits, gradients are accumulated to global_batch",
        *_saved(sizes, "engine"),
        "  compile: none # auto: a faster step on a GPU, after minutes of compilation",
        "",
        "eval: # pictures of teacher and student, side by side",
        f"  captions: {sources} # better: captions of your own choice that are not in the files above",
        f"  size: {sizes.drawn} # pictures",
        "  protocol: native # pictures as they are drawn; paper: as the paper scores them, resized to 256 pixels",
        "  steps: 25 # sampling steps per picture",
        f"  guidance: {own.guidance} # scale of classifier-free guidance",
        *_sampler(own),
        *_size(own),
        "  batch: null # samples at once; null: the largest that fits",
        "  weights: ema # raw: the weights of the last step; ema: their moving average, usually better",
        "  metrics: [] # [clip]: scores too; downloads open_clip's ViT-g-14, 5.5 GB",
        "",
        "paths:",
        f"  cache: {_quoted(f'{runs}/cache')} # latents",
        f"  pool: {_quoted(f'{runs}/pool')} # captions",
        f"  reference: {_quoted(f'{runs}/teacher')} # the teacher's pictures",
        f"  run: {_quoted(f'{runs}/run')} # checkpoints, logs, and the student as a diffusers folder: student_ema",
    ]
    return "\n".join(lines) + "\n"


def _sampler(own: Own) -> list[str]:
    """Returns the line of the sampler if the default one does not suit the teacher."""
    return ["  sampler: teacher # the one that the teacher ships with"] if own.flow else []


def _size(own: Own) -> list[str]:
    """Returns the line of the images' size if it is not the teacher's own."""
    return [f"  resolution: {own.size} # pixels of an image's side"] if own.size else []


def _level(own: Own) -> list[str]:
    """Returns the line that says what p is a function of, if the teacher was trained by flow matching."""
    return ["  of: sigma # p grows with sigma, the share of noise"] if own.flow else []


def _quoted(value: Any) -> str:
    """Returns strings as YAML that means them, whatever they hold."""
    return json.dumps(value, ensure_ascii=False)


def _word(file: Path) -> str:
    """Returns a path as a word of a shell's command."""
    return shlex.quote(str(file))


def _saved(sizes: Sizes, section: str) -> list[str]:
    """Returns the lines of a section's settings that save memory."""
    found = {key.partition(".")[2]: value for key, value in sizes.savers.items() if key.startswith(f"{section}.")}
    why = "saves memory: without it, the training does not fit"
    return [f"  {key}: {json.dumps(value)} # {why}" for key, value in found.items()]


def _init(rule: str) -> str:
    """Returns `teacher` if a rule keeps the teacher's widths, else `random`."""
    from randcond.model_zoo.students.registry import find_rule

    return "teacher" if find_rule(rule).copies else "random"
