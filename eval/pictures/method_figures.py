"""Pictures of the method, drawn from experiments' configurations: p(t), images regenerated from x_t, overlap of x_t.

In: configurations; the teacher, for pictures with images. Out: a PNG file (Figures A, 3 and 5 of the paper). They are
drawn by one process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image
from matplotlib.figure import Figure
from torch import Tensor

from randcond.data.contact_sheet import draw_comparison
from randcond.data.digits.judge import Judge
from randcond.data.digits.world import read_label
from randcond.data.stream.conditioning import probability_table
from randcond.data.teacher_of import text_options
from randcond.eval.images.prompts import choose_prompts
from randcond.eval.pictures.saving import DPI, save
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Picture
from randcond.launch.device.batches import recorded_eval_batch
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.pipelines import denoiser, load_frozen_pipeline
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents, to_bytes

STEPS, GUIDANCE = 25, 7.5  # supplement K; used if the experiment sets none


def draw_picture(picture: Picture, configs: list[Config], path: Path) -> Path:
    """Draws a picture into the PNG file `path`; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    DRAW_FUNCTIONS[picture.kind](picture, configs, path)
    return path


def probabilities(picture: Picture, configs: list[Config], path: Path) -> None:
    """Plots p(t) over the timestep t, with one line per experiment (Figure A)."""
    figure, axes = _axes(1)
    for config in configs:
        table = probability_table(config.conditioning.p, config.conditioning.p_args, 1000)
        arguments = ", ".join(f"{value:g}" for value in config.conditioning.p_args.values())
        axes[0].plot(table, label=config.conditioning.p + (f" {arguments}" if arguments else ""))
    axes[0].set(xlabel="timestep t", ylabel="p(t)", ylim=(-0.03, 1.03))
    axes[0].legend(frameon=False, fontsize=9)
    save(figure, path)


def regenerated(picture: Picture, configs: list[Config], path: Path) -> None:
    """Draws images of one caption, noised to several timesteps t and denoised under another caption (Figure 3).

    For the digits world, it also plots the share of images that show the digit of either caption, over
    `picture.read` pairs of captions.
    """
    config = configs[0]
    pipe = _teachers_pipeline(config)
    captions = choose_prompts(config).captions
    digits = "digits" in config.eval.metrics
    count = max(picture.captions, picture.read if digits else 0)
    pairs = _caption_pairs(captions, count, digits)
    own, other = ([captions[number] for number in side] for side in zip(*pairs, strict=True))
    seeds = [caption_seed(config.eval.seed, number) for number, _ in pairs]
    originals = _draw_batches(config, pipe, own, seeds)
    columns = {"x_0": originals}
    timesteps = [sampler_step(config, pipe, timestep)[1] for timestep in picture.timesteps]
    for timestep in Progress(timesteps, desc="regenerating", unit="timestep"):
        columns[f"from t = {timestep}"] = regenerate(config, pipe, originals, other, seeds, timestep)
    columns["the other caption"] = _draw_batches(config, pipe, other, seeds)
    images = {name: _decode_batches(config, pipe, latents) for name, latents in columns.items()}
    shown = range(picture.captions)
    labels = [f"{a}  ->  {b}" for a, b in zip(own, other, strict=True)]
    arms = {
        name: {number: to_bytes(column[number : number + 1])[0] for number in shown} for name, column in images.items()
    }
    if not digits or not picture.read:
        draw_comparison(path, labels, {"own -> other": list(shown)}, arms)
        return
    sheet = path.with_name(f"{path.stem}-sheet.png")
    draw_comparison(sheet, labels, {"own -> other": list(shown)}, arms)
    _add_shares(timesteps, own, other, images, sheet, path)


def sampler_step(config: Config, pipe: Any, timestep: int) -> tuple[int, int]:
    """Returns how many of the sampler's timesteps are at or below `timestep`, and the highest of these.

    x_t is noised to that highest one. Raises UserError if all of the sampler's timesteps are above `timestep`.
    """
    pipe.scheduler.set_timesteps(_steps_and_guidance(config)[0])
    at_or_below = [step for step in pipe.scheduler.timesteps.tolist() if step <= timestep]
    if not at_or_below:
        lowest = min(pipe.scheduler.timesteps)
        raise UserError(f"pictures: timestep {timestep}: is below the sampler's last timestep {lowest}")
    return len(at_or_below), at_or_below[0]


def regenerate(
    config: Config, pipe: Any, latents: Tensor, captions: list[str], seeds: list[int], timestep: int
) -> Tensor:
    """Noises latents x_0 [n, C, h, w] to a timestep and denoises them under n captions; returns [n, C, h, w].

    Latents are scaled as the denoiser takes them. `timestep` is rounded down to one of the sampler's, see
    sampler_step().
    Uses the image-to-image pipeline of diffusers, whose `strength` is the share of the sampler's steps to run.
    """
    steps, guidance = _steps_and_guidance(config)
    count, _ = sampler_step(config, pipe, timestep)
    image_to_image = AutoPipelineForImage2Image.from_pipe(pipe)
    image_to_image.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(latents), _batch(config)):
        part = slice(start, start + _batch(config))
        drawn = image_to_image(
            captions[part],
            image=latents[part].to(pipe.device, denoiser(pipe).dtype),
            strength=min(1.0, (count + 0.5) / steps),  # the pipeline runs int(steps * strength) steps
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + 1) for seed in seeds[part]],
            output_type="latent",
        )
        parts.append(drawn.images)
    return torch.cat(parts)


def _caption_pairs(captions: Sequence[str], count: int, digits: bool) -> list[tuple[int, int]]:
    """Returns `count` pairs of caption numbers; for the digits world, the two captions name different digits."""
    half = len(captions) // 2
    order = np.random.default_rng(0).permutation(len(captions)).tolist()  # seen captions may come first in the list
    pairs = list(zip(order[:half], order[half : 2 * half], strict=True))
    if digits:
        pairs = [(a, b) for a, b in pairs if read_label(captions[a]).digit != read_label(captions[b]).digit]
    if len(pairs) < count:
        raise UserError(
            f"pictures: {count} pairs of captions are needed, but eval.captions and eval.size give only {len(pairs)}"
        )
    return pairs[:count]


def _teachers_pipeline(config: Config) -> Any:
    """Loads the teacher's pipeline with DDIM, which the figures need."""
    path = resolve_path(config.teacher.path)
    return load_frozen_pipeline(path, config.teacher.dtype, device(), "ddim", text=text_options(config))


def _batch(config: Config) -> int:
    """Returns the compute batch: the experiment's, or the one that its evaluation recorded."""
    return config.eval.batch or recorded_eval_batch(config) or 1


def _draw_batches(config: Config, pipe: Any, captions: list[str], seeds: list[int]) -> Tensor:
    """Draws n captions in compute batches; returns latents x_0 [n, C, h, w]."""
    batch, (steps, guidance) = _batch(config), _steps_and_guidance(config)
    parts = []
    for start in range(0, len(captions), batch):
        part = slice(start, start + batch)
        parts.append(
            draw_latents(
                pipe,
                captions[part],
                seeds[part],
                steps,
                guidance,
                batch,
                config.eval.resolution,
                config.teacher.text_tokens,
            )
        )
    return torch.cat(parts)


def _steps_and_guidance(config: Config) -> tuple[int, float]:
    """Returns the experiment's steps and guidance scale for DDIM, which the paper uses; defaults of supplement K."""
    protocol = protocol_of(config.eval)
    return protocol.steps or STEPS, GUIDANCE if protocol.guidance is None else protocol.guidance


def _decode_batches(config: Config, pipe: Any, latents: Tensor) -> Tensor:
    return torch.cat([decode(pipe, part).cpu() for part in latents.split(_batch(config))])


def _add_shares(
    timesteps: list[int], own: list[str], other: list[str], images: dict[str, Tensor], sheet: Path, path: Path
) -> None:
    """Writes `path`: the contact sheet `sheet`, and below it a plot of shares by timestep. Removes `sheet`.

    The shares are those of images that show the digit of their own caption, and of the other caption.
    """
    from PIL import Image

    judge = Judge.load()
    expected_digits = [torch.tensor([read_label(text).digit for text in side]) for side in (own, other)]
    shares = []
    for timestep in timesteps:
        digits = judge.classify(images[f"from t = {timestep}"])[0][:, 0]
        shares.append([(digits == expected).float().mean().item() for expected in expected_digits])
    above = Image.open(sheet)
    figure, axes = _axes(1, above.width / DPI)
    for name, values in zip(("x_0's own digit", "the other caption's digit"), zip(*shares, strict=True), strict=True):
        axes[0].plot(timesteps, values, marker="o", markersize=3, label=name)
    axes[0].set(xlabel="timestep t that x_t is taken from", ylabel=f"share of {len(own)} images", ylim=(-0.03, 1.03))
    axes[0].legend(frameon=False, fontsize=9)
    save(figure, path)
    below = Image.open(path)
    whole = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    whole.paste(above, (0, 0))
    whole.paste(below, (0, above.height))
    with atomic_write(path) as temporary:
        whole.save(temporary, format="PNG")
    sheet.unlink()


def overlap(picture: Picture, configs: list[Config], path: Path) -> None:
    """Plots x_t of two captions' images at several timesteps, in the plane where they differ most (Figure 5).

    The number in each title is the overlap of two normal distributions with the means and the common variance of the
    two projected clouds.
    """
    config = configs[0]
    pipe = _teachers_pipeline(config)
    captions = choose_prompts(config).captions
    first, second = _caption_pairs(captions, 1, "digits" in config.eval.metrics)[0]
    clouds = []
    for side, number in enumerate((first, second)):
        seeds = [caption_seed(config.eval.seed + side, image) for image in range(2 * picture.captions)]
        clouds.append(_draw_batches(config, pipe, [captions[number]] * len(seeds), seeds).float().cpu().flatten(1))
    plane, clouds = _held_out(clouds)
    alphas = _alphas(pipe)
    figure, axes = _axes(len(picture.timesteps))
    generator = torch.Generator().manual_seed(config.eval.seed)
    for ax, timestep in zip(axes, picture.timesteps, strict=True):
        alpha = alphas[timestep]
        noised = [alpha**0.5 * x + (1 - alpha) ** 0.5 * torch.randn(x.shape, generator=generator) for x in clouds]
        points = [x_t @ plane for x_t in noised]
        for cloud, number in zip(points, (first, second), strict=True):
            ax.scatter(cloud[:, 0], cloud[:, 1], s=8, alpha=0.6, label=captions[number])
        ax.set(title=f"t = {timestep}: overlap {_normal_overlap(points):.0%}", xticks=[], yticks=[])
    axes[0].legend(frameon=False, fontsize=7, loc="lower left")
    save(figure, path)


def _held_out(clouds: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns the plane [D, 2] of the clouds' second halves, and the first halves, which the plane is not fitted to.

    In many dimensions some direction separates any two samples, even if they come from one distribution. So the overlap
    must be measured on other points than those that the plane is fitted to.
    """
    half = len(clouds[0]) // 2
    return _plane([cloud[half:] for cloud in clouds]), [cloud[:half] for cloud in clouds]


def _normal_overlap(points: list[Tensor]) -> float:
    """Returns the overlap in [0, 1] of two clouds [n, 2] along the first axis, taken as equally wide normals."""
    distance = (points[0][:, 0].mean() - points[1][:, 0].mean()).abs()
    width = ((points[0][:, 0].var() + points[1][:, 0].var()) / 2).sqrt()
    return torch.special.erfc(distance / width / 2 / 2**0.5).item()


def _plane(clouds: list[Tensor]) -> Tensor:
    """Returns two orthonormal directions [D, 2] for two clouds [n, D].

    The first one connects the means of the clouds. The second one has the largest variance orthogonal to it.
    """
    direction = clouds[0].mean(0) - clouds[1].mean(0)
    direction = direction / direction.norm()
    centred = torch.cat([cloud - cloud.mean(0) for cloud in clouds])
    rest = centred - (centred @ direction)[:, None] * direction
    return torch.stack([direction, torch.linalg.svd(rest, full_matrices=False)[2][0]], dim=1)


def _alphas(pipe: Any) -> np.ndarray:
    """Returns the scheduler's cumulative products alpha_bar_t [timesteps], float64."""
    return pipe.scheduler.alphas_cumprod.cpu().double().numpy()


def _axes(columns: int, width: float = 6.4) -> tuple[Figure, Any]:
    """Returns a figure with `columns` plots side by side, at least `width` inches wide."""
    figure = Figure(figsize=(max(width, 3.0 * columns), 3.6), layout="constrained", dpi=DPI)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


DRAW_FUNCTIONS = {"probabilities": probabilities, "regenerated": regenerated, "overlap": overlap}
