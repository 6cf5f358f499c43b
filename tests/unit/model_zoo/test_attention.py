"""Attention backends: the choice for each shape, the self-test, and the reported reasons."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor
from torch.nn.attention import SDPBackend

from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.forward import cast, denoise
from randcond.model_zoo.families.stable_diffusion import StableDiffusion
from randcond.model_zoo.kernels import attention
from randcond.model_zoo.kernels.attention import (
    AttentionShape,
    Choice,
    Use,
    attention_shapes,
    choice_from,
    choose_attention,
    self_test,
    set_attention,
    summary,
)
from randcond.model_zoo.students.registry import student_of
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step, choose_kernels
from tests.unit.model_zoo.test_students import inputs, tiny_teacher

CPU = torch.device("cpu")


def settled(folder: Path, *words: str) -> dict[str, Any]:
    """Returns attention.json after a run of the demo has chosen its kernels in a folder."""
    config = load_config("demo-with", list(words))
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, CPU)
    module, _ = build_step(config, teacher)
    engine: Any = SimpleNamespace(rank=0, ranks=1, device=CPU, dtype=torch.float32, broadcast=lambda it: it)
    choose_kernels(config, teacher, module.network, engine, folder)
    return json.loads((folder / "attention.json").read_text())


def full_size(name: str) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    from tests.support.shaped import unet_config

    with torch.device("meta"):
        teacher = UNet2DConditionModel(**unet_config("sd-v1-4", tiny=False))
        return student_of(name, Architecture.of(teacher)).denoiser.build()


def test_shapes_are_those_of_the_forward() -> None:
    shapes = attention_shapes(full_size("channel-micro"), tokens=77)  # type: ignore[arg-type]
    outermost = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert shapes[f"{outermost}.attn1"] == AttentionShape(8, 20, 4096, 4096)
    assert shapes[f"{outermost}.attn2"] == AttentionShape(8, 20, 4096, 77)
    assert {shape.head_dim for shape in shapes.values()} == {20, 40, 80}
    assert len(shapes) == 2 * 16


def test_head_dims_that_xformers_refuses_keep_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "self_test", lambda *_: 0.001)  # as on a GPU where xformers works
    unet = full_size("channel-micro")
    choices = choose_attention(unet, "xformers", Use(torch.bfloat16, CPU, 1, trains=True))  # type: ignore[arg-type]
    set_attention(unet, choices)  # type: ignore[arg-type]
    assert {c.shape.head_dim: c.backend for c in choices} == {20: "sdpa", 40: "xformers", 80: "xformers"}
    for module in unet.modules():
        if isinstance(module, attention.Attention):
            refused = (module.inner_dim // module.heads) % 8
            assert isinstance(module.processor, AttnProcessor2_0 if refused else XFormersAttnProcessor)
    assert "divisible by 8, this one is 20" in summary(choices)
    assert summary(choices).startswith("sdpa 10, xformers 22 modules")


def test_a_failing_self_test_falls_back_and_says_why() -> None:
    """This uses the real xformers, which has no operator for a CPU."""
    choices = choose_attention(full_size("block-tiny"), "xformers", Use(torch.float32, CPU, 1, trains=False))  # type: ignore[arg-type]
    assert {choice.backend for choice in choices} == {"sdpa"}
    assert all("failed its self-test: NotImplementedError" in choice.why for choice in choices)


def test_auto_on_a_cpu_and_plain_sdpa() -> None:
    teacher = tiny_teacher("sd-v1-4")
    auto = choose_attention(teacher, "auto", Use(torch.float32, CPU, 1, trains=True))
    assert summary(auto) == "sdpa 32 modules (no xformers operator runs on a CPU)"
    assert summary(choose_attention(teacher, "sdpa", Use(torch.float32, CPU, 1, trains=True))) == "sdpa 32 modules"


def test_auto_takes_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"xformers": 0.002, "sdpa": 0.001, "flash": 0.003}

    def timed(backend: str, *_: object) -> float:
        if backend not in times:
            raise RuntimeError("No available kernel. Aborting execution.")
        return times[backend]

    monkeypatch.setattr(attention, "self_test", timed)
    shape = AttentionShape(8, 40, 4096, 4096)
    chosen = attention._choose(shape, "auto", Use(torch.bfloat16, torch.device("cuda"), 1, True))
    assert chosen == ("sdpa", "sdpa 1.00 ms, xformers 2.00 ms, flash 3.00 ms")
    times["sdpa"] = 0.004
    whole = attention._choose(shape, "auto", Use(torch.bfloat16, torch.device("cuda"), 1, True, one_graph=True))
    assert whole == ("flash", "flash 3.00 ms, sdpa 4.00 ms; xformers can't be part of one graph")
    assert attention._choose(shape, "auto", Use(torch.bfloat16, torch.device("cuda"), 1, True))[0] == "xformers"
    refused = attention._choose(shape._replace(head_dim=20), "auto", Use(torch.bfloat16, torch.device("cuda"), 1, True))
    assert refused[0] == "flash" and refused[1].endswith("xformers needs head dims divisible by 8, this one is 20")


def test_a_kernel_of_sdpa_by_name() -> None:
    """The flash kernel runs on a CPU and is taken. cuDNN's kernel does not, and is refused with the reason."""
    teacher = tiny_teacher("sd-v1-4")
    before = denoise(teacher, *inputs(teacher))
    choices = choose_attention(teacher, "flash", Use(torch.float32, CPU, 2, trains=True), tokens=7)
    assert {choice.backend for choice in choices} == {"flash"}, summary(choices)
    set_attention(teacher, choices, tokens=7)
    kernels = {module.processor.kernel for module in teacher.modules() if isinstance(module, attention.Attention)}
    assert kernels == {SDPBackend.FLASH_ATTENTION}
    assert torch.allclose(denoise(teacher, *inputs(teacher)), before, atol=1e-5)
    refused = choose_attention(teacher, "cudnn", Use(torch.float32, CPU, 2, trains=True), tokens=7)
    assert {choice.backend for choice in refused} == {"sdpa"}
    assert all("cudnn failed its self-test: RuntimeError" in choice.why for choice in refused)


def test_the_self_test_runs_the_real_layer() -> None:
    assert self_test("sdpa", AttentionShape(2, 8, 16, 7), Use(torch.float32, CPU, 2, trains=True)) > 0


def test_one_key_whose_softmax_has_no_gradient_is_no_disagreement() -> None:
    """The gradient of a softmax over one key is 0 or a rounding error, depending on the CPU.

    With 4 heads of 32, the relative difference was 0 / 0 on a CPU with AMX.
    """
    for heads, head_dim in ((2, 8), (4, 32), (3, 20)):
        for dtype in (torch.float32, torch.bfloat16):
            assert self_test("flash", AttentionShape(heads, head_dim, 1, 1), Use(dtype, CPU, 2, trains=True)) > 0


@pytest.mark.parametrize("keys", [1, 7])
@pytest.mark.parametrize(("wrong", "said"), [("forward", "the output differs"), ("backward", "the gradient with")])
def test_a_kernel_that_is_wrong_forward_or_backward_is_refused(
    wrong: str, said: str, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher may use a kernel with wrong gradients, because it needs none."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 1.2 if wrong == "forward" else x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 1.2

    class Kernel(AttnProcessor2_0):
        def __call__(self, *inputs: Any, **options: Any) -> torch.Tensor:
            return Wrong.apply(super().__call__(*inputs, **options))

    monkeypatch.setitem(attention.PROCESSORS, "flash", Kernel)
    shape = AttentionShape(2, 8, 16, keys)
    with pytest.raises(RuntimeError, match=said):
        self_test("flash", shape, Use(torch.float32, CPU, 2, trains=True))
    if wrong == "backward":
        assert self_test("flash", shape, Use(torch.float32, CPU, 2, trains=False)) > 0


@pytest.mark.heavy
def test_a_run_goes_on_with_its_kernels_but_only_where_they_were_chosen_for(tmp_path: Path) -> None:
    first = settled(tmp_path)
    kept = json.loads(json.dumps(first).replace('"sdpa"', '"flash"'))
    (tmp_path / "attention.json").write_text(json.dumps(kept))
    assert settled(tmp_path) == kept  # the kernels that it started with
    for words in (["student.rule=channel-tiny"], ["engine.compile=whole"], ["engine.attention=sdpa"]):
        (tmp_path / "attention.json").write_text(json.dumps(kept))
        chosen = settled(tmp_path, *words)
        assert {each["backend"] for what in ("teacher", "student") for each in chosen[what]} == {"sdpa"}
    torch._dynamo.reset()


def test_a_choice_survives_json() -> None:
    choice = Choice(AttentionShape(8, 40, 4096, 77), 5, "xformers", "requested")
    assert choice_from(json.loads(json.dumps(asdict(choice)))) == choice


@pytest.mark.gpu
def test_on_a_gpu_every_backend_is_taken_and_agrees_with_sdpa() -> None:
    device = torch.device("cuda")
    teacher = tiny_teacher("sdxl").to(device, torch.bfloat16)  # head dims 16
    inputs_ = [x.to(device) for x in inputs(teacher)[:2]]
    condition = {name: value.to(device) for name, value in inputs(teacher)[2].items()}
    drawn = {}
    for wanted in ("sdpa", "flash", "cudnn", "efficient", "xformers"):
        choices = choose_attention(teacher, wanted, Use(torch.bfloat16, device, 2, trains=True), tokens=7)
        assert {choice.backend for choice in choices} == {wanted}, summary(choices)
        set_attention(teacher, choices, tokens=7)
        drawn[wanted] = denoise(
            teacher, inputs_[0].bfloat16(), inputs_[1], cast(StableDiffusion(), condition, torch.bfloat16)
        )
    for wanted in ("flash", "cudnn", "efficient", "xformers"):
        assert torch.allclose(drawn["sdpa"].float(), drawn[wanted].float(), atol=0.05, rtol=0.05), wanted
