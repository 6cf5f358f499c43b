"""`randcond students rank`: which of a transformer's blocks change their input most, measured on cached latents."""

import shlex
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.teacher_of import load_teacher
from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.this_command import remember_experiment
from randcond.model_zoo.denoiser.block_change import BlockChanges, most_changing
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.families.base.family import Stack
from randcond.model_zoo.students.depth import DepthRule
from randcond.model_zoo.students.registry import find_rule, student_of
from randcond.model_zoo.teacher import Teacher

BAR = 40  # characters of the longest bar


def rank(
    experiment: str, *overrides: str, samples: int = 256, batch: int = 8, seed: int = 0, out: str | None = None
) -> None:
    """Ranks the blocks of a transformer teacher by how much they change their input, and proposes which to keep.

    Runs the teacher on cached latents with their own captions, at the timesteps that training draws. A block that
    changes its input little is missed least. The proposal has as many blocks as student.rule.

    experiment   a name or a YAML file; its cache must be complete
    overrides    any key of the YAML, such as those that the cache was made with

    --samples N  number of latents, chosen at random (default 256)
    --batch N    samples at once (default 8)
    --seed N     of the choice, the timesteps and the noise (default 0)
    --out FILE   write the changes and the proposal to this JSON file

    examples     randcond students rank demo-flow-with
                 randcond students rank mine.yaml student.rule=depth-12 --samples 1000
    """
    remember_experiment(experiment, overrides)
    for flag, value in (("--samples", samples), ("--batch", batch)):
        if value < 1:
            raise UserError(f"{flag}: must be at least 1, got {value}")
    config = load_config(experiment, overrides)
    teacher = load_teacher(config)
    stack = teacher.family.stack(teacher.architecture.config)
    if stack is None:
        raise UserError(f"{experiment}: the teacher has a U-Net; its blocks differ, so block rules name them instead")
    counts = _counts(config, teacher, stack)
    changes, measured = _measure(config, teacher, stack, samples, batch, seed)
    kept = most_changing(changes, stack, counts)
    longest = max(changes)
    print("block    change of the image tokens, |output - input|^2 / |input|^2")
    for number, change in enumerate(changes):
        bar = "#" * max(1, round(BAR * change / longest))
        print(f"{number:5}  {change:8.4f}  {bar:{BAR}}  {'kept' if number in kept else ''}".rstrip())
    rule = f"depth-{'+'.join(map(str, counts))}"
    keep = f"student.keep=[{','.join(map(str, kept))}]"
    print(f"\nproposed: student.rule={rule} {shlex.quote(keep)}")
    if out:
        write_json(Path(out), {"samples": measured, "seed": seed, "changes": changes, "rule": rule, "keep": kept})


def _counts(config: Config, teacher: Teacher, stack: Stack) -> tuple[int, ...]:
    """Returns how many blocks of each kind the experiment's student has; half of them if its rule keeps all."""
    rule = find_rule(config.student.rule)
    if not isinstance(rule, DepthRule):
        rule = find_rule(teacher.family.default_rule(teacher.architecture.config))
        assert isinstance(rule, DepthRule)
    name = f"depth-{'+'.join(map(str, rule.counts))}"
    student_of(name, teacher.architecture)  # raises if the teacher has not so many
    return rule.counts


@torch.no_grad()
def _measure(
    config: Config, teacher: Teacher, stack: Stack, samples: int, batch: int, seed: int
) -> tuple[list[float], int]:
    """Returns the mean change of each block on `samples` cached latents, or on all if there are fewer, and how many."""
    cache = LatentCache.open(config, teacher.fingerprint)
    teacher.latent_side = cache.latent_shape[-1]
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(cache))[:samples].tolist()
    draw = teacher.process.draw(config.train.timesteps, config.train.shift)
    found = BlockChanges(teacher.denoiser, stack)
    generator = torch.Generator().manual_seed(seed)
    with Progress(total=len(chosen), desc="measuring", unit="latent") as bar:
        for start in range(0, len(chosen), batch):
            part = [cache.pair(index) for index in chosen[start : start + batch]]
            latents = torch.stack([torch.from_numpy(latent).float() for latent, _ in part])
            timesteps = torch.tensor([draw(random) for _ in part])
            noise = torch.randn(latents.shape, generator=generator)
            noised = teacher.add_noise(latents, noise, timesteps)
            _run(teacher, noised, timesteps, [cache.captions[number] for _, number in part])
            bar.update(len(part))
    return found.means(), len(chosen)


def _run(teacher: Teacher, noised: Tensor, timesteps: Tensor, captions: list[str]) -> None:
    """Runs the teacher once. noised: x_t [B, C, h, w]. timesteps: t [B]."""
    condition = teacher.encode(teacher.tokenizers(captions))
    place = teacher.device
    denoise(teacher.denoiser, noised.to(place, teacher.dtype), timesteps.to(place), condition)
