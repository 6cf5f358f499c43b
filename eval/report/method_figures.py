"""Pictures of the method itself, out of experiments' configurations: p(t), images regenerated from x_t, overlap.

In: configurations; a teacher where images are drawn. Out: a PNG (Figures A, 3 and 5 of the paper). One process.
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
from randcond.eval.images.prompts import choose_prompts
from randcond.eval.report.result_plots import DPI, save
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Picture
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.pipelines import load_frozen_pipeline
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents, to_bytes

STEPS, GUIDANCE = 25, 7.5  # supplement K, where the experiment says nothing else


def draw_picture(picture: Picture, configs: list[Config], path: Path) -> Path:
    """Draws one; returns where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    DRAWN[picture.kind](picture, configs, path)
    return path


def probabilities(picture: Picture, configs: list[Config], path: Path) -> None:
    """p(t) over t, a line per experiment (Figure A)."""
    figure, axes = _axes(1)
    for config in configs:
        table = probability_table(config.conditioning.p, config.conditioning.p_args, 1000)
        arguments = ", ".join(f"{value:g}" for value in config.conditioning.p_args.values())
        axes[0].plot(table, label=config.conditioning.p + (f" {arguments}" if arguments else ""))
    axes[0].set(xlabel="timestep t", ylabel="p(t)", ylim=(-0.03, 1.03))
    axes[0].legend(frameon=False, fontsize=9)
    save(figure, path)


def regenerated(picture: Picture, configs: list[Config], path: Path) -> None:
    """What x_t of one caption's image becomes under another caption, by t (Figure 3).

    On the digits: beside the sheet, the share of images that show either caption's digit, of `picture.read` pairs.
    """
    config = configs[0]
    pipe = load_frozen_pipeline(resolve_path(config.teacher.path), config.teacher.dtype, device(), "ddim")
    captions = choose_prompts(config).captions
    digits = "digits" in config.eval.metrics
    count = max(picture.captions, picture.read if digits else 0)
    pairs = _pairs(captions, count, digits)
    own, other = ([captions[number] for number in side] for side in zip(*pairs, strict=True))
    seeds = [caption_seed(config.eval.seed, number) for number, _ in pairs]
    first = _drawn(config, pipe, own, seeds)
    columns = {"x_0": first}
    reached = [sampler_step(config, pipe, timestep)[1] for timestep in picture.timesteps]
    for timestep in Progress(reached, desc="regenerating", unit="timestep"):
        columns[f"from t = {timestep}"] = regenerate(config, pipe, first, other, seeds, timestep)
    columns["the other caption"] = _drawn(config, pipe, other, seeds)
    images = {name: _decoded(config, pipe, latents) for name, latents in columns.items()}
    shown = range(picture.captions)
    words = [f"{a}  ->  {b}" for a, b in zip(own, other, strict=True)]
    arms = {
        name: {number: to_bytes(found[number : number + 1])[0] for number in shown} for name, found in images.items()
    }
    if not digits or not picture.read:
        draw_comparison(path, words, {"own -> other": list(shown)}, arms)
        return
    sheet = path.with_name(f"{path.stem}-sheet.png")
    draw_comparison(sheet, words, {"own -> other": list(shown)}, arms)
    _shares(reached, own, other, images, sheet, path)


def sampler_step(config: Config, pipe: Any, timestep: int) -> tuple[int, int]:
    """How many of the sampler's steps are at or below a timestep, and the uppermost of these: what x_t is noised to.

    Raises UserError where there is none.
    """
    pipe.scheduler.set_timesteps(_settings(config)[0])
    below = [each for each in pipe.scheduler.timesteps.tolist() if each <= timestep]
    if not below:
        raise UserError(f"pictures: timestep {timestep}: the sampler's last step is at {min(pipe.scheduler.timesteps)}")
    return len(below), below[0]


def regenerate(
    config: Config, pipe: Any, latents: Tensor, captions: list[str], seeds: list[int], timestep: int
) -> Tensor:
    """Latents x_0 [n, C, h, w], noised to a timestep of the sampler and denoised again under captions -> [n, C, h, w].

    By diffusers' image-to-image pipeline: `strength` is the share of the sampler's steps that are taken.
    """
    steps, guidance = _settings(config)
    count, _ = sampler_step(config, pipe, timestep)
    again = AutoPipelineForImage2Image.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    found = []
    for start in range(0, len(latents), config.eval.batch):
        part = slice(start, start + config.eval.batch)
        drawn = again(
            captions[part],
            image=latents[part].to(pipe.device, pipe.unet.dtype),
            strength=min(1.0, (count + 0.5) / steps),  # which it multiplies and rounds down
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + 1) for seed in seeds[part]],
            output_type="latent",
        )
        found.append(drawn.images)
    return torch.cat(found)


def _pairs(captions: Sequence[str], count: int, digits: bool) -> list[tuple[int, int]]:
    """Numbers of captions two by two; on the digits of different digits."""
    half = len(captions) // 2
    order = np.random.default_rng(0).permutation(len(captions)).tolist()  # a list may have seen captions first
    pairs = list(zip(order[:half], order[half : 2 * half], strict=True))
    if digits:
        pairs = [(a, b) for a, b in pairs if read_label(captions[a]).digit != read_label(captions[b]).digit]
    if len(pairs) < count:
        raise UserError(f"pictures: {count} pairs of captions wanted, eval.captions and eval.size give {len(pairs)}")
    return pairs[:count]


def _drawn(config: Config, pipe: Any, captions: list[str], seeds: list[int]) -> Tensor:
    batch, (steps, guidance) = config.eval.batch, _settings(config)
    parts = []
    for start in range(0, len(captions), batch):
        part = slice(start, start + batch)
        parts.append(draw_latents(pipe, captions[part], seeds[part], steps, guidance, batch, config.eval.resolution))
    return torch.cat(parts)


def _settings(config: Config) -> tuple[int, float]:
    """The experiment's steps and guidance, of DDIM, by which the paper draws; supplement K's where it says neither."""
    named = protocol_of(config.eval)
    return named.steps or STEPS, GUIDANCE if named.guidance is None else named.guidance


def _decoded(config: Config, pipe: Any, latents: Tensor) -> Tensor:
    return torch.cat([decode(pipe, part).cpu() for part in latents.split(config.eval.batch)])


def _shares(
    timesteps: list[int], own: list[str], other: list[str], images: dict[str, Tensor], sheet: Path, path: Path
) -> None:
    """The sheet above the shares of images that show the first or the other caption's digit, by timestep."""
    from PIL import Image

    judge = Judge.load()
    said = [torch.tensor([read_label(text).digit for text in side]) for side in (own, other)]
    shares = []
    for timestep in timesteps:
        digits = judge.classify(images[f"from t = {timestep}"])[0][:, 0]
        shares.append([(digits == wanted).float().mean().item() for wanted in said])
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
    with atomic_write(path) as aside:
        whole.save(aside, format="PNG")
    sheet.unlink()


def overlap(picture: Picture, configs: list[Config], path: Path) -> None:
    """x_t of two captions' images by t, in the plane where they differ most, and how much the two overlap (Figure 5).

    The overlap is that of two normal distributions as far apart, in their own widths, as the projected x_t are.
    """
    config = configs[0]
    pipe = load_frozen_pipeline(resolve_path(config.teacher.path), config.teacher.dtype, device(), "ddim")
    captions = choose_prompts(config).captions
    first, second = _pairs(captions, 1, "digits" in config.eval.metrics)[0]
    clouds = []
    for side, number in enumerate((first, second)):
        seeds = [caption_seed(config.eval.seed + side, each) for each in range(2 * picture.captions)]
        clouds.append(_drawn(config, pipe, [captions[number]] * len(seeds), seeds).float().cpu().flatten(1))
    plane, clouds = _held_out(clouds)
    alphas = _alphas(pipe)
    figure, axes = _axes(len(picture.timesteps))
    generator = torch.Generator().manual_seed(config.eval.seed)
    for ax, timestep in zip(axes, picture.timesteps, strict=True):
        alpha = alphas[timestep]
        noised = [alpha**0.5 * x + (1 - alpha) ** 0.5 * torch.randn(x.shape, generator=generator) for x in clouds]
        points = [each @ plane for each in noised]
        for cloud, number in zip(points, (first, second), strict=True):
            ax.scatter(cloud[:, 0], cloud[:, 1], s=8, alpha=0.6, label=captions[number])
        ax.set(title=f"t = {timestep}: overlap {_shared(points):.0%}", xticks=[], yticks=[])
    axes[0].legend(frameon=False, fontsize=7, loc="lower left")
    save(figure, path)


def _held_out(clouds: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The plane of the clouds' second halves, and their first halves, which it has not seen.

    In many dimensions some direction parts any two samples, also of one distribution.
    """
    half = len(clouds[0]) // 2
    return _plane([cloud[half:] for cloud in clouds]), [cloud[:half] for cloud in clouds]


def _shared(points: list[Tensor]) -> float:
    """The overlap of two clouds [n, 2] along the first axis, were they normal and equally wide."""
    apart = (points[0][:, 0].mean() - points[1][:, 0].mean()).abs()
    width = ((points[0][:, 0].var() + points[1][:, 0].var()) / 2).sqrt()
    return torch.special.erfc(apart / width / 2 / 2**0.5).item()


def _plane(clouds: list[Tensor]) -> Tensor:
    """Two orthonormal directions [D, 2]: between the clouds' middles, and of most spread beside that."""
    apart = clouds[0].mean(0) - clouds[1].mean(0)
    apart = apart / apart.norm()
    rest = torch.cat([cloud - cloud.mean(0) for cloud in clouds])
    rest = rest - (rest @ apart)[:, None] * apart
    return torch.stack([apart, torch.linalg.svd(rest, full_matrices=False)[2][0]], dim=1)


def _alphas(pipe: Any) -> np.ndarray:
    return pipe.scheduler.alphas_cumprod.cpu().double().numpy()


def _axes(columns: int, width: float = 6.4) -> tuple[Figure, Any]:
    """`width` in inches, at least."""
    figure = Figure(figsize=(max(width, 3.0 * columns), 3.6), layout="constrained", dpi=DPI)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


DRAWN = {"probabilities": probabilities, "regenerated": regenerated, "overlap": overlap}
