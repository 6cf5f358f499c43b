"""Switches that make the step faster don't change its losses and weights; fp8 changes them a little."""

import re
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.model_zoo.kernels.attention import Use, choose_attention, set_attention
from randcond.model_zoo.kernels.compilation import compile_drawing, compile_text
from randcond.model_zoo.kernels.fp8 import Fp8Linear, fp8_teacher, quantize
from randcond.model_zoo.sampler import decode, draw_latents, to_bytes
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import apply_speed_options, build_step
from randcond.train.engine.base import build_optimizer
from randcond.train.tools.tune_command import noise_batch
from tests.bench.step import PLAIN, Case, agree
from tests.bench.step import SWITCHES as SWITCHES_OF_THE_BENCH
from tests.support.shaped import build

STEPS = 3
Weights = dict[str, torch.Tensor]
Run = tuple[list[float], Weights, Weights]


def train(*words: str, fused: bool = True, where: str = "cpu") -> Run:
    """Trains the embedded world in fp32 in this process. Returns total losses, weights after and weights before."""
    torch._dynamo.reset()
    config = load_config("demo-with", [*words, "train.lr=1e-4"])
    options = config.engine
    teacher = Teacher.load(resolve_path(config.teacher.path), "fp32", torch.device(where))
    module, distil = build_step(config, teacher)
    if options.attention != "auto":
        for network, trains in ((teacher.denoiser, False), (module.network, True)):
            choices = choose_attention(network, options.attention, Use(torch.float32, teacher.device, 2, trains))
            assert {choice.backend for choice in choices} == {options.attention}
            set_attention(network, choices)
    if options.teacher_fp8:
        fp8_teacher(teacher)
    apply_speed_options(options, teacher, module.network)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = build_optimizer(config, module.parameters())
    for group in optimizer.param_groups:
        assert group["fused"]
        group["fused"] = fused
    losses = []
    for step in range(STEPS):
        found = distil(module, noise_batch(teacher, 4, seed=step), torch.float32)
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        losses.append(found.total.item())
    return losses, {name: p.detach().clone() for name, p in module.named_parameters()}, before


@pytest.mark.parametrize("experiment", ["demo-with", "demo-flow-with"])
def test_a_step_searches_no_network_for_its_device(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' properties `device` and `dtype` look at every module of a network: 1 ms and more at every call."""
    config = load_config(experiment)
    teacher = Teacher.load(resolve_path(config.teacher.path), "fp32")
    module, distil = build_step(config, teacher)

    def search(network: torch.nn.Module) -> None:
        raise AssertionError(f"all modules of {type(network).__name__} are searched")

    monkeypatch.setattr("diffusers.models.modeling_utils.get_parameter_device", search)
    monkeypatch.setattr("diffusers.models.modeling_utils.get_parameter_dtype", search)
    with pytest.raises(AssertionError, match="are searched"):
        _ = teacher.denoiser.device
    assert distil(module, noise_batch(teacher, 2), torch.float32).total > 0
    assert teacher.device.type == "cpu"


@pytest.fixture(scope="module")
def plain() -> Run:
    return train()


SWITCHES = [
    ["engine.attention=flash"],
    ["engine.channels_last=true"],
    ["engine.activation_checkpointing=true"],
    pytest.param(["engine.compile=blocks"], marks=pytest.mark.slow),
    pytest.param(["engine.compile=whole"], marks=pytest.mark.slow),
    pytest.param(
        ["engine.compile=whole", "engine.teacher_graph=true", "engine.channels_last=true", "engine.attention=flash"],
        marks=pytest.mark.slow,
    ),
    pytest.param(["engine.compile=whole", "engine.activation_checkpointing=true"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("words", SWITCHES, ids=" ".join)
def test_a_switch_changes_no_result(plain: Run, words: list[str]) -> None:
    losses, weights, _ = train(*words)
    assert losses == pytest.approx(plain[0], rel=1e-5)
    assert distance(weights, plain[1]) < 1e-2 * distance(plain[1], plain[2])


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_taps_inside_of_compiled_blocks_capture_what_they_do_inside_of_plain_ones(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KOALA taps the self-attention of some blocks of a class. The other blocks of that class have no tap."""
    words = [f"teacher.path={build('sdxl', tmp_path, tiny=True)}", "student.rule=koala-700m"]
    plain = train(*words)
    by_default = UNet2DConditionModel.compile_repeated_blocks
    monkeypatch.setattr(UNet2DConditionModel, "compile_repeated_blocks", partialmethod(by_default, backend=backend))
    losses, weights, _ = train(*words, "engine.compile=blocks")
    assert losses == pytest.approx(plain[0], rel=1e-5)
    assert distance(weights, plain[1]) < 1e-2 * distance(plain[1], plain[2])


def distance(ours: Weights, theirs: Weights) -> float:
    """Returns the Euclidean distance over all weights."""
    return sum((ours[name] - values).square().sum().item() for name, values in theirs.items()) ** 0.5


@pytest.mark.gpu
def test_a_teacher_replayed_as_one_cuda_graph_teaches_the_same() -> None:
    """Each replay overwrites the outputs of the previous one. The step must have used them by then."""
    plain = train("engine.compile=whole", where="cuda")
    losses, weights, _ = train("engine.compile=whole", "engine.teacher_graph=true", where="cuda")
    assert losses == pytest.approx(plain[0], rel=1e-5)
    assert distance(weights, plain[1]) < 1e-2 * distance(plain[1], plain[2])


@pytest.mark.gpu
@pytest.mark.parametrize("label", SWITCHES_OF_THE_BENCH)
def test_on_a_gpu_in_bf16_a_switch_changes_losses_no_more_than_rounding_does(label: str) -> None:
    """Rounding is measured with the samples in the opposite order. Only 8 bits may change more, and the log says so."""
    words = [
        "teacher.dtype=bf16",
        "engine.precision=bf16",
        "train.global_batch=8",
        *PLAIN,
        *SWITCHES_OF_THE_BENCH[label],
    ]
    found = agree(Case("world", words, 20), 20)
    rounds = any(what in label for what in ("fp8", "int8", "8 bits"))
    assert found["largest"] < (0.05 if rounds else 4 * found["by_rounding"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd-v1-4", "sdxl"])
def test_compiled_text_encoders_encode_the_same(layout: str, tmp_path: Path) -> None:
    """Also after a change of the batch size, and for SDXL's penultimate states and pooled embedding."""
    teacher = Teacher.load(build(layout, tmp_path / layout, tiny=True), "fp32")
    batches = [teacher.tokenizers(["a red three", "a blue five"][:size]) for size in (2, 1, 2)]
    plain = [teacher.encode(batch) for batch in batches]
    compile_text(teacher.text_encoders)
    for ours, theirs in zip([teacher.encode(batch) for batch in batches], plain, strict=True):
        assert set(ours) == set(theirs)
        assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_a_compiled_pipeline_draws_the_same(how: str) -> None:
    teacher = Teacher.load(resolve_path("package:data/digits/models/teacher"), "fp32")
    drawn = []
    for compiled in ("none", how):
        pipe = teacher.pipeline("ddim")
        compile_drawing(pipe, compiled)
        latents = draw_latents(pipe, ["a red three", "a blue five"], [1, 2], 4, 3.0, 2)
        drawn.append((latents, to_bytes(decode(pipe, latents)).int()))
    assert torch.allclose(drawn[0][0], drawn[1][0], atol=1e-4)
    assert (drawn[0][1] - drawn[1][1]).abs().max() <= 1


def test_fused_adamw_steps_as_torchs_plain_one(plain: Run) -> None:
    losses, weights, _ = train(fused=False)
    assert losses == pytest.approx(plain[0], rel=1e-6)
    assert distance(weights, plain[1]) < 1e-3 * distance(plain[1], plain[2])


def test_a_teacher_in_fp8_says_how_far_off_it_is(plain: Run) -> None:
    """fp8 changes results a little: the log says by how much, and the losses change by at most 1 %."""
    teacher = Teacher.load(resolve_path("package:data/digits/models/teacher"), "fp32")
    found = re.fullmatch(r"teacher in fp8: (\d+) of (\d+) linear layers, .* by (\d+\.\d+)%", fp8_teacher(teacher))
    assert found and int(found[1]) == 160 and int(found[2]) == 184  # the 24 of time embeddings stay as they are
    assert 0.1 < float(found[3]) < 3
    losses, _, _ = train("engine.teacher_fp8=true")
    assert losses != plain[0] and losses == pytest.approx(plain[0], rel=0.01)


def test_an_fp8_layer_beside_the_layer_it_replaces() -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 48), torch.randn(3, 5, 64)
    ours, theirs = Fp8Linear(linear)(x), linear(x)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    weight, scale = quantize(linear.weight.detach())
    assert (weight.float() * scale - linear.weight).abs().max() < linear.weight.abs().max() / 16  # mantissa: 3 bits
    assert (ours - theirs).norm() / theirs.norm() < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_fp8_layer_gives_what_it_gives_uncompiled(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = Fp8Linear(torch.nn.Linear(64, 48, dtype=dtype)), torch.randn(3, 5, 64, dtype=dtype)
    plain, compiled = layer(x), torch.compile(layer, fullgraph=True)(x)
    assert compiled.dtype == dtype
    assert (compiled - plain).norm() / plain.norm() < 0.01
