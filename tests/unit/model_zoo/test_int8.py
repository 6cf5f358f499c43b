"""Weights of the frozen teacher in 8 bits: their error, what is stored, and that everything else works as before."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from randcond.launch.config.paths import PACKAGE
from randcond.model_zoo.int8_products import Int8Product, to_int8
from randcond.model_zoo.int8_weights import Int8Layer, int8_bytes, store_in_int8
from randcond.model_zoo.kernels.compilation import compile_network
from randcond.model_zoo.pipelines import load_frozen_pipeline, pipeline_size
from randcond.model_zoo.sampler import draw_latents
from randcond.model_zoo.students.features import FeatureTaps
from randcond.model_zoo.teacher import Teacher
from randcond.model_zoo.text_encoding.options import TextOptions
from tests.support.shaped import build

DIGITS = PACKAGE / "data/digits/models/teacher"


def held(network: nn.Module) -> int:
    """Returns the bytes of a network's parameters and scales."""
    scales = [module.scale for module in network.modules() if isinstance(module, Int8Layer | Int8Product)]
    return sum(tensor.nbytes for tensor in [*network.parameters(), *scales])


@pytest.mark.parametrize("shape", [(48, 64), (8, 16, 3, 3)])
def test_a_weight_is_at_most_half_a_step_off(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[3] = 0  # an output channel without weights
    weight[4] *= 1e-4  # each channel has a scale of its own
    stored, scale = to_int8(weight)
    assert stored.dtype == torch.int8 and scale.shape == (shape[0], *(1 for _ in shape[1:]))
    step = weight.abs().amax(tuple(range(1, len(shape))), keepdim=True) / 127
    assert ((stored * scale - weight).abs() <= 0.501 * step).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_with_its_stored_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cases = [
        (nn.Linear(16, 24), torch.randn(2, 5, 16)),
        (nn.Linear(16, 24, bias=False), torch.randn(2, 16)),
        (nn.Conv2d(8, 16, 3, stride=2, padding=1), torch.randn(2, 8, 10, 10)),
        (nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4, bias=False), torch.randn(2, 8, 10, 10)),
    ]
    for layer, x in cases:
        layer, x = layer.to(dtype), x.to(dtype)
        ours = Int8Layer(layer)(x)
        exact = layer(x)
        assert ours.dtype == dtype and ours.shape == exact.shape
        assert 0 < (ours - exact).norm() / exact.norm() < 0.02
        stored, scale = to_int8(layer.weight.detach())
        layer.weight.data = stored * scale
        assert torch.equal(ours, layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "has_bias"), [((2, 20), True), ((3,), False), ((17,), True)])
def test_a_product_is_that_of_the_rounded_rows(dtype: torch.dtype, rows: tuple[int, ...], has_bias: bool) -> None:
    """Each row has a scale of its own, also one of zeros, so no row depends on another one."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 24, bias=has_bias).to(dtype)
    x = torch.randn(*rows, 16).to(dtype)
    x[0] *= 1e-3
    x.view(-1, 16)[1] = 0
    ours, exact = Int8Product(layer)(x), layer(x)
    assert ours.dtype == dtype and ours.shape == exact.shape
    assert 0 < (ours - exact).norm() / exact.norm() < 0.02
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    stored, of_weight = to_int8(layer.weight.detach())
    rounded = (x.float() / scale).round().double() * scale
    layer = layer.double()
    layer.weight.data = stored.double() * of_weight
    assert torch.allclose(ours.double(), layer(rounded), rtol=1e-5 if dtype is torch.float32 else 1e-2, atol=1e-6)
    assert torch.equal(Int8Product(layer.to(dtype))(x[:1]), ours[:1])


def test_many_rows_are_multiplied_in_parts() -> None:
    layer, x = Int8Product(nn.Linear(8, 8)), torch.randn(2, 5000, 8)
    assert torch.equal(layer(x)[:, :10], layer(x[:, :10]))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("layout", ["sd-v1-4", "sdxl"])
def test_a_teacher_in_int8_is_near_and_small(layout: str, kind: str, tmp_path: Path) -> None:
    folder = build(layout, tmp_path / layout)
    exact, stored = Teacher.load(folder, "bf16"), Teacher.load(folder, kind)
    assert stored.dtype == stored.denoiser.dtype == torch.bfloat16
    assert {encoder.dtype for encoder in stored.text_encoders} == {torch.bfloat16}
    found = re.fullmatch(r"teacher in int8: (\d+) of (\d+) linear .* predictions by (\d+\.\d+)%", stored.remark)
    assert found and int(found[1]) > 0.9 * int(found[2]) and 0.1 < float(found[3]) < 10
    assert bool(re.search(r"\(\d+ multiply in it\)", stored.remark)) == (kind == "int8_dynamic")
    for ours, theirs in zip(
        (stored.denoiser, *stored.text_encoders), (exact.denoiser, *exact.text_encoders), strict=True
    ):
        assert held(ours) == int8_bytes(theirs) < held(theirs)
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
        assert not any(p.requires_grad for p in ours.parameters())
    weights = stored.stored_denoiser()  # students start from the weights in the files
    assert all(weights[name].dtype == torch.float32 for name in ("conv_in.weight", "mid_block.resnets.0.conv1.weight"))


@pytest.mark.parametrize("kind", ["int8", "int8_dynamic"])
def test_the_embedded_teacher_in_int8_says_how_far_off_it_is(kind: str) -> None:
    found = re.fullmatch(r"teacher in int8: .* by (\d+\.\d+)%", Teacher.load(DIGITS, kind).remark)
    assert found and 0.1 < float(found[1]) < 3


def test_text_encoders_may_be_stored_otherwise_than_the_denoiser() -> None:
    remark = Teacher.load(DIGITS, "int8", text=TextOptions(dtype="int8_dynamic")).remark
    assert re.fullmatch(
        r"text encoders in int8: .* multiply in it.* by \d\.\d+%; teacher in int8: \d+ of \d+ linear .*", remark
    ), remark


def test_taps_and_channels_last_see_no_difference() -> None:
    teacher = Teacher.load(DIGITS, "int8")
    taps = FeatureTaps(teacher.denoiser, ["down_blocks.0", "mid_block", "down_blocks.0.attentions.0"])
    plain = teacher.probe()
    features = taps.collect()
    assert len(features) == 3 and all(feature.dtype == torch.bfloat16 for feature in features)
    teacher.denoiser.to(memory_format=torch.channels_last)
    assert (teacher.probe() - plain).norm() / plain.norm() < 0.01


@pytest.mark.heavy
def test_a_pipeline_in_int8_draws_nearly_the_same() -> None:
    """A student's denoiser keeps its weights."""
    drawn = {}
    for dtype, student in (("bf16", False), ("int8", False), ("int8", True)):
        pipe = load_frozen_pipeline(DIGITS, dtype, "cpu", "ddim", student)
        drawn[dtype, student] = draw_latents(pipe, ["a red three"], [1], 4, 3.0, 1).float()
        assert pipeline_size(pipe) == pipeline_size(load_frozen_pipeline(DIGITS, "bf16", "cpu"))
        layers = {
            part: any(isinstance(module, Int8Layer) for module in getattr(pipe, part).modules())
            for part in ("unet", "text_encoder", "vae")
        }
        eight = dtype == "int8"
        assert layers == {"unet": eight and not student, "text_encoder": eight, "vae": False}
    exact = drawn["bf16", False]
    for ours in (drawn["int8", False], drawn["int8", True]):
        assert 0 < (ours - exact).norm() / exact.norm() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_a_compiled_teacher_in_int8_predicts_the_same(how: str, kind: str) -> None:
    teacher = Teacher.load(DIGITS, kind)
    plain = teacher.probe()
    compile_network(teacher.denoiser, how)
    assert (teacher.probe() - plain).norm() / plain.norm() < 0.01


def test_layers_outside_of_numbered_blocks_stay() -> None:
    unet = Teacher.load(DIGITS, "fp32").denoiser
    taken, layers = store_in_int8(unet)
    assert 0 < taken < layers
    for name in ("conv_in", "conv_out", "time_embedding.linear_1"):
        assert not isinstance(unet.get_submodule(name), Int8Layer)


@pytest.mark.gpu
def test_the_gpus_product_is_the_cpus() -> None:
    torch.manual_seed(0)
    layer, x = Int8Product(nn.Linear(64, 128)), torch.randn(5, 64)
    assert torch.allclose(layer.cuda()(x.cuda()).cpu(), layer.cpu()(x), rtol=1e-5, atol=1e-5)
