"""Pictures of the method, with the digits teacher: p(t), regenerated images, and overlap."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from randcond.data.digits.judge import Judge
from randcond.data.digits.world import read_label
from randcond.eval.pictures.method_figures import (
    _held_out,
    _normal_overlap,
    _plane,
    draw_picture,
    regenerate,
    sampler_step,
)
from randcond.eval.report.report import load_report, write_report
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.tables import Picture
from randcond.launch.errors import UserError
from randcond.model_zoo.pipelines import load_frozen_pipeline
from randcond.model_zoo.sampler import decode, draw_latents
from tests.unit.eval.test_report import loads

WORDS = ["eval.size=12", "eval.batch=12"]


def test_the_papers_p_of_t_is_drawn_without_any_training(tmp_path: Path) -> None:
    write_report(load_report(["figureA"], [], str(tmp_path)))
    with Image.open(tmp_path / "1-probabilities.png") as picture:
        assert picture.width > 600
        colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3)[::7].tolist()}
    lines = {(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75)}
    assert lines <= colours  # matplotlib's default colours, one per p(t)
    page = (tmp_path / "report.html").read_text()
    assert loads(page) == [] and "data:image/png" in page and "How each row" not in page


@pytest.mark.heavy
def test_a_small_t_keeps_the_digit_and_a_large_t_takes_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("demo-with", WORDS)
    pipe = load_frozen_pipeline(resolve_path(config.teacher.path), "fp32", "cpu", "ddim")
    own = [f"a red {digit} on a navy background" for digit in ("zero", "one", "two", "four", "six", "seven")]
    other = own[3:] + own[:3]
    seeds = list(range(6))
    first = draw_latents(pipe, own, seeds, 25, 3.0, 6)
    judge, wanted = Judge.load(), [[read_label(text).digit for text in side] for side in (own, other)]

    def digits(timestep: int) -> list[int]:
        noised: list[int] = []
        plain = DDIMScheduler.add_noise

        def adding(self: Any, x: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            noised.extend(timesteps.tolist())
            return plain(self, x, noise, timesteps)

        monkeypatch.setattr(DDIMScheduler, "add_noise", adding)
        again = regenerate(config, pipe, first, other, seeds, timestep)
        monkeypatch.undo()
        assert set(noised) == {sampler_step(config, pipe, timestep)[1]}
        return judge.classify(decode(pipe, again))[0][:, 0].tolist()

    steps = {timestep: sampler_step(config, pipe, timestep) for timestep in (1, 100, 961, 999)}
    assert steps == {1: (1, 1), 100: (3, 81), 961: (25, 961), 999: (25, 961)}  # leading spacing, offset 1
    with pytest.raises(UserError, match="timestep 0: is below the sampler's last timestep 1"):
        sampler_step(config, pipe, 0)
    assert digits(100) == wanted[0]
    assert sum(a == b for a, b in zip(digits(999), wanted[1], strict=True)) >= 5


def test_figures_are_drawn_as_the_experiment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def drawing(pipe: Any, captions: list[str], seeds: list[int], *settings: Any) -> torch.Tensor:
        seen.append(settings)
        return draw_latents(pipe, captions, seeds, *settings)

    monkeypatch.setattr("randcond.eval.pictures.method_figures.draw_latents", drawing)
    words = [*WORDS, "eval.guidance=0", "eval.steps=2", "eval.resolution=64"]
    config = load_config("demo-with", words)
    draw_picture(Picture("overlap", ["demo-with"], "t", [0], captions=2), [config], tmp_path / "a.png")
    assert set(seen) == {(2, 0.0, config.eval.batch, 64, None)}  # teacher.text_tokens is last


@pytest.mark.heavy
def test_sheets_and_shares_are_drawn(tmp_path: Path) -> None:
    config = load_config("demo-with", WORDS)
    picture = Picture("regenerated", ["demo-with"], "t", timesteps=[200, 900], captions=3, read=4)
    whole = draw_picture(picture, [config], tmp_path / "a.png")
    with Image.open(whole) as image:
        assert image.height > image.width / 2 and len(set(image.convert("L").resize((50, 50)).getdata())) > 30
    assert not (tmp_path / "a-sheet.png").exists()
    with pytest.raises(UserError, match="50 pairs of captions are needed"):
        draw_picture(Picture("regenerated", ["demo-with"], "t", [200], captions=50), [config], tmp_path / "b.png")
    found = draw_picture(Picture("overlap", ["demo-with"], "t", [0, 900], captions=12), [config], tmp_path / "c.png")
    with Image.open(found) as image:
        assert image.width > image.height


def test_the_plane_is_where_two_clouds_differ_most() -> None:
    generator = torch.Generator().manual_seed(0)
    clouds = [torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 1.0, 6.0, 1.0, 1.0]) for _ in range(2)]
    clouds[1][:, 0] += 50
    plane = _plane(clouds)
    assert torch.allclose(plane.T @ plane, torch.eye(2), atol=1e-5)
    assert plane[0, 0].abs() > 0.99 and plane[2, 1].abs() > 0.99


def test_samples_of_one_distribution_overlap_whatever_their_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    clouds = [torch.randn(128, 4096, generator=generator) for _ in range(2)]
    plane, seen_first = _held_out(clouds)
    assert _normal_overlap([cloud @ plane for cloud in seen_first]) > 0.8
    clouds[1][:, 7] += 50
    plane, seen_first = _held_out(clouds)
    assert _normal_overlap([cloud @ plane for cloud in seen_first]) < 0.01
