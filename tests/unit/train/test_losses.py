"""Every loss term equals an independent computation in float64; weights add the terms up to the total."""

import numpy as np
import pytest
import torch
from torch import Tensor

from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Losses
from randcond.launch.errors import UserError
from randcond.train.losses import (
    LOSSES,
    Outputs,
    feature_loss,
    frequency_loss,
    output_loss,
    spatial_loss,
    task_loss,
    weigh,
)


def tensors(count: int, shape: tuple[int, ...] = (3, 4, 8, 8), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def near(term: Tensor, exact: float) -> bool:
    return term.dtype == torch.float32 and abs(term.item() - exact) <= 1e-5 * abs(exact)


def test_output_loss() -> None:
    ours, theirs = tensors(2)
    exact = ((ours.double().numpy() - theirs.double().numpy()) ** 2).mean()
    assert near(output_loss(ours, theirs)["output"], exact)
    assert output_loss(ours.bfloat16(), theirs.bfloat16())["output"].dtype == torch.float32


def test_feature_distances_of_each_sample() -> None:
    (a, b) = tensors(2, (3, 5, 6))
    b[1, 0, 0] = 100.0  # far beyond two standard deviations of its sample
    ours, theirs = a.double().numpy().reshape(3, -1), b.double().numpy().reshape(3, -1)
    squares = (ours - theirs) ** 2
    normalised = (squares.mean(1) / theirs.var(1, ddof=1)).mean()
    assert near(feature_loss(["x"], [a], [b], "normalised")["feature/x"], normalised)
    within = abs(theirs - theirs.mean(1, keepdims=True)) <= 2 * theirs.std(1, ddof=1, keepdims=True)
    masked = np.mean([squares[i][within[i]].mean() for i in range(3)])
    assert near(feature_loss(["x"], [a], [b], "masked")["feature/x"], masked)
    assert masked < squares.mean() / 10
    # A sample's share does not depend on which other samples are in its micro-batch.
    for variant in ("plain", "normalised", "masked"):
        whole = feature_loss(["x"], [a], [b], variant)["feature/x"]
        parts = [feature_loss(["x"], [a[i : i + 1]], [b[i : i + 1]], variant)["feature/x"] for i in range(3)]
        assert torch.allclose(whole, torch.stack(parts).mean())


def test_feature_and_spatial_losses() -> None:
    (a, b), (c, d) = tensors(2), tensors(2, (3, 6, 4, 4), seed=1)
    for loss, kind in ((feature_loss, "feature"), (spatial_loss, "spatial")):
        terms = loss(["one", "two"], [a, c], [b, d])
        assert list(terms) == [f"{kind}/one", f"{kind}/two"]
        assert near(terms[f"{kind}/one"], ((a.double() - b.double()) ** 2).mean().item())
        assert near(terms[f"{kind}/two"], ((c.double() - d.double()) ** 2).mean().item())


def test_task_loss_is_the_global_sum_over_the_global_count() -> None:
    prediction, target = tensors(2, (8, 4, 2, 2))
    kept = torch.tensor([1, 0, 0, 1, 1, 0, 0, 1]).bool()
    errors = ((prediction.double() - target.double()) ** 2).mean(dim=(1, 2, 3))
    exact = errors[kept].sum().item() / 4
    whole = task_loss(prediction, target, kept, 4, global_batch=8)["task"]
    assert near(whole, exact)
    for parts in ([2] * 4, [4, 4]):  # engines average over the micro-batches of all ranks, which are equal
        split = [x.split(parts) for x in (prediction, target, kept)]
        terms = [task_loss(*part, 4, global_batch=8)["task"] for part in zip(*split, strict=True)]
        assert abs(torch.stack(terms).mean().item() - exact) < 1e-5 * exact
    none = torch.zeros(8).bool()
    assert task_loss(prediction, target, none, 0, global_batch=8)["task"].item() == 0


def test_frequency_loss_by_numpy() -> None:
    ours, theirs = tensors(2, (2, 5, 4, 4))
    (latents,) = tensors(1, (2, 4, 8, 8), seed=2)
    difference = np.fft.fft2(theirs.double().numpy() - ours.double().numpy(), norm="ortho")
    small = latents.double().numpy().reshape(2, 4, 4, 2, 4, 2).mean(axis=(3, 5))  # 8x8 -> 4x4, means of areas
    weight = 1 / np.maximum(np.abs(np.fft.fft2(small, norm="ortho")).mean(axis=1, keepdims=True), 1e-2)
    exact = (weight * np.abs(difference) ** 2).mean()
    assert near(frequency_loss(["x"], [ours], [theirs], latents)["frequency/x"], exact)
    flat = frequency_loss(["x"], [ours], [theirs], latents, alpha=0.0)["frequency/x"]
    assert near(flat, ((ours.double() - theirs.double()) ** 2).mean().item())  # by Parseval's theorem


def test_features_that_are_no_images_have_no_frequencies() -> None:
    (tokens,) = tensors(1, (2, 16, 8))
    with pytest.raises(UserError, match=r"frequency: attn1 gives \(2, 16, 8\), which is not an image"):
        frequency_loss(["attn1"], [tokens], [tokens], torch.randn(2, 4, 8, 8))


def outputs(**changes: object) -> Outputs:
    prediction, teacher, target, latents, mine, its = tensors(6)
    given = {
        "prediction": prediction.requires_grad_(),
        "teacher": teacher,
        "features": [mine.requires_grad_()],
        "teacher_features": [its],
        "names": ["block"],
        "target": target,
        "latents": latents,
        "unreplaced": torch.tensor([True, False, True]),
        "unreplaced_in_batch": 2,
        "global_batch": 3,
    }
    return Outputs(**{**given, **changes})  # type: ignore[arg-type]


def test_weights_make_the_total_and_zero_leaves_a_loss_out() -> None:
    weights = {"output": 0.0, "feature": 0.0, "task": 1.0, "spatial": 0.1, "frequency": 0.1}  # the weights of SLIM
    total, terms = weigh(weights, outputs())
    exact = terms["task"] + 0.1 * (terms["spatial/prediction"] + terms["spatial/block"])
    exact = exact + 0.1 * (terms["frequency/prediction"] + terms["frequency/block"])
    assert total.item() == pytest.approx(exact.item(), rel=1e-6)
    assert terms["spatial"].item() == pytest.approx((terms["spatial/prediction"] + terms["spatial/block"]).item())
    assert "output" not in terms and "feature" not in terms
    total.backward()


def test_nothing_to_learn_and_unknown_losses_are_refused() -> None:
    with pytest.raises(UserError, match="every weight is 0"):
        load_config("demo-with", ["train.losses.output=0", "train.losses.feature=0"])
    with pytest.raises(UserError, match=r"train.losses.task: must be at least 0, got -1"):
        load_config("demo-with", ["train.losses.task=-1.0"])
    with pytest.raises(UserError, match=r"train.losses.freqency: unknown key; did you mean 'frequency'"):
        load_config("demo-with", ["train.losses.freqency=1.0"])
    assert set(vars(Losses())) == set(LOSSES)
