"""Feature taps are exact with activation checkpointing and compilation, and fail if they capture nothing."""

import pytest
import torch
import torch._dynamo.utils

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.students.features import FeatureTaps, TappedStudent
from randcond.model_zoo.students.registry import build_student, student_of
from tests.support.compiling import fast_compilation
from tests.unit.model_zoo.test_students import inputs, tiny_teacher

Run = tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]


def forward_and_backward(module: TappedStudent, teacher: torch.nn.Module) -> Run:
    noised, timesteps, condition = inputs(teacher)  # type: ignore[arg-type]
    prediction, features = module(noised, timesteps, condition)
    (prediction.square().mean() + sum(feature.square().mean() for feature in features)).backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    return prediction.detach(), [feature.detach() for feature in features], gradients


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("layout", "name", "how"),
    [
        ("sd-v1-4", "block-base", "checkpointing"),
        ("sd-v1-4", "block-base", "compile"),
        ("sd-v1-4", "block-base", "both"),
        ("sdxl", "koala-700m", "checkpointing"),
        ("sdxl", "koala-700m", "compile"),
        pytest.param("sdxl", "koala-700m", "both", marks=pytest.mark.slow),
    ],
)
def test_taps_give_the_same_features_and_gradients(layout: str, name: str, how: str) -> None:
    with fast_compilation():
        compare_runs(layout, name, how)


def compare_runs(layout: str, name: str, how: str) -> None:
    """Compares two steps with a plain one."""
    teacher = tiny_teacher(layout)
    architecture = Architecture.of(teacher)
    network = build_student(name, architecture, seed=1)
    module = TappedStudent(network, student_of(name, architecture), architecture)
    plain = forward_and_backward(module, teacher)
    if how in ("checkpointing", "both"):
        module.network.enable_gradient_checkpointing()
    if how in ("compile", "both"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        # aot_eager traces like the real compiler but compiles no C++, which is slow. Only the hardest case compiles.
        module.network.compile_repeated_blocks(backend="inductor" if (layout, how) == ("sdxl", "both") else "aot_eager")
    for _ in range(2):  # a second step must not see features that the first backward pass recomputed
        again = forward_and_backward(module, teacher)
        assert torch.allclose(plain[0], again[0], atol=1e-5)
        for before, after in zip(plain[1], again[1], strict=True):
            assert torch.allclose(before, after, atol=1e-5)
        for key, gradient in plain[2].items():
            assert torch.allclose(gradient, again[2][key], atol=1e-5, rtol=1e-3), key
        assert not any(tap.feature is not None for tap in module.taps.taps.values())  # no feature is kept
    if how in ("compile", "both"):
        counted = torch._dynamo.utils.counters
        assert 0 < counted["stats"]["unique_graphs"] <= 6, "one graph per block, because the hooks' guards differ"
        assert not counted["graph_break"]


def test_taps_name_what_is_missing() -> None:
    teacher = tiny_teacher("sd-v1-4")
    with pytest.raises(UserError, match=r"no module mid_block\.attentions\.7"):
        FeatureTaps(teacher, ["mid_block.attentions.7"])
    taps = FeatureTaps(teacher, ["mid_block"])
    with pytest.raises(RuntimeError, match="captured nothing at mid_block"):
        taps.collect()
    denoise(teacher, *inputs(teacher))
    taps.forget()  # an earlier forward pass must not count
    with pytest.raises(RuntimeError, match="captured nothing at mid_block"):
        taps.collect()
    taps.remove()
