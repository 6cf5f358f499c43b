"""Student rules on every layout: the paper's sizes, exact copies of weights, and matching features."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from randcond.launch.errors import UserError
from randcond.model_zoo.cost.memory import saved_activations
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.families.stable_diffusion import StableDiffusion
from randcond.model_zoo.students.features import FeatureTaps, TappedStudent
from randcond.model_zoo.students.registry import STUDENTS, build_student, default_rule, find_rule, student_of
from randcond.model_zoo.students.rule import StudentRule
from randcond.model_zoo.students.slim import SlimUNet2DConditionModel, haar_dwt, haar_idwt
from randcond.model_zoo.students.unet_rule import UNetRule
from randcond.model_zoo.students.weight_copy import copy_teacher_weights
from randcond.train.losses import feature_loss, output_loss
from tests.support.demo import randcond
from tests.support.shaped import unet_config

TABLE_A = {  # teacher layout -> student -> parameters (millions), MACs and attention MACs (G), from Tables A and F
    "sd-v1-4": {
        "teacher": (859.5, 338.6, 63.0),
        "block-base": (579.4, 223.7, 37.8),
        "block-small": (482.3, 217.6, 37.8),
        "block-tiny": (323.4, 205.0, 37.8),
        "channel-base": (553.2, 217.0, 50.4),
        "channel-small": (425.3, 166.2, 44.1),
        "channel-tiny": (314.1, 122.3, 37.8),
        "channel-micro": (219.8, 85.0, 31.5),
    },
    "sdxl": {
        "teacher": (2567.5, 2988.7, 392.0),
        "koala-1b": (1161.2, 1515.4, 200.5),
        "koala-700m": (782.8, 1176.2, 174.6),
    },
}
TFLOP = {"block-base": 2.37, "block-tiny": 2.26, "channel-micro": 1.50, "koala-1b": 17.1, "koala-700m": 14.9}
NINE = [(layout, name) for layout, rows in TABLE_A.items() for name in rows if name != "teacher"]
ELSEWHERE = [  # rules on teachers the paper never distilled
    *[("sd-v2-1", name) for name in ("block-base", "block-tiny", "channel-small", "slim-base")],
    *[("sdxl", name) for name in ("block-base", "block-small", "channel-micro", "slim-small")],
    *[("sd-v1-4", name) for name in ("slim-base", "slim-small", "slim-tiny", "channel-0.65")],
]


def tiny_teacher(layout: str) -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(**unet_config(layout, tiny=True)).eval().requires_grad_(False)


def blank(config: dict[str, Any], batch: int, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    return StableDiffusion().blank_condition(config, batch, 7, dtype)


def tapped(unet: UNet2DConditionModel, teacher: UNet2DConditionModel, rule: StudentRule) -> TappedStudent:
    architecture = Architecture.of(teacher)
    return TappedStudent(unet, rule.derive(architecture), architecture)


def inputs(teacher: UNet2DConditionModel, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    config = teacher.config
    condition = {name: torch.randn_like(value) for name, value in blank(config, batch).items()}
    noised = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size)
    return noised, torch.tensor([10, 900])[:batch], condition


@pytest.mark.heavy
@pytest.mark.parametrize(
    "teachers", [["sd-v1-4"], pytest.param(list(TABLE_A), marks=pytest.mark.slow)], ids=["SD 1.4", "all"]
)
def test_sizes_and_costs_are_the_papers(teachers: list[str], tmp_path: Path) -> None:
    one = ["--teacher", teachers[0]] if len(teachers) == 1 else []
    rows = json.loads(randcond(tmp_path, "students", *one, "--json").stdout)
    found = {(row["teacher"], row["name"]): row for row in rows}
    for teacher in teachers:
        for name, wanted in TABLE_A[teacher].items():
            row = found[teacher, name]
            assert (row["parameters_m"], row["macs_g"], row["attention_macs_g"]) == wanted, (teacher, name)
            if name in TFLOP:
                assert row["training_tflop_per_sample"] == pytest.approx(TFLOP[name], abs=0.05)
    assert "transformer_layers_per_block is 1" in found["sd-v1-4", "koala-1b"]["does_not_apply"]
    memory = found["sd-v1-4", "block-base"]["memory_gb"]
    assert memory["teacher"] == pytest.approx(2 * 0.8595, abs=0.01)
    assert memory["weights"] == pytest.approx(2 * 0.5794, abs=0.01)
    assert memory["optimizer"] == pytest.approx(16 * 0.5794, abs=0.01)
    assert found["sd-v1-4", "block-base"]["block_out_channels"] == [320, 640, 1280, 1280]


@pytest.mark.heavy
def test_activations_are_what_a_real_forward_keeps(tmp_path: Path) -> None:
    denoiser = tiny("sd-v1-4")
    counted = saved_activations(denoiser, batch=3, tokens=7)
    unet, kept = denoiser.build().to(torch.bfloat16), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    condition = blank(denoiser.config, 3, torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = denoise(unet, torch.zeros(3, 4, 16, 16, dtype=torch.bfloat16), torch.zeros(3), condition)
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    assert out.grad_fn is not None
    assert counted == pytest.approx(real, rel=0.05)


def expected_source(name: str, key: str) -> str:
    """Returns the teacher's key for a student's key, following the paper's text and not the code of the rules."""
    if not key.startswith("up_blocks"):
        return key
    parts = key.split(".")
    if name == "block-tiny":
        parts[1] = {"0": "1", "1": "2", "2": "3"}[parts[1]]
    if parts[2] in ("resnets", "attentions"):
        parts[3] = {"0": "0", "1": "2"}[parts[3]]
    return ".".join(parts)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *[("sd-v1-4", name) for name in ("block-base", "block-small", "block-tiny")],
        *[("sdxl", name) for name in ("koala-1b", "koala-700m", "block-base")],
        ("sd-v2-1", "block-tiny"),
    ],
)
def test_teacher_weights_are_copied_bit_by_bit(layout: str, name: str) -> None:
    theirs = tiny_teacher(layout).state_dict()
    derived = student_of(name, tiny(layout))
    student = derived.denoiser.build()
    copied = copy_teacher_weights(derived, student, theirs)
    compared = 0
    for key, tensor in student.state_dict().items():
        source = expected_source(name, key)
        assert torch.equal(tensor, theirs[source]), f"{key} is not {source}"
        compared += 1
    assert copied == compared == len(list(student.state_dict()))


def tiny(layout: str) -> Architecture:
    return Architecture.of(tiny_teacher(layout))


@pytest.mark.parametrize(("layout", "name"), [("sd-v1-4", "block-tiny"), ("sdxl", "koala-700m"), ("sdxl", "koala-1b")])
def test_every_full_size_tensor_has_a_teacher_tensor_of_its_shape(layout: str, name: str) -> None:
    with torch.device("meta"):
        teacher = UNet2DConditionModel(**unet_config(layout, tiny=False))
        student = student_of(name, Architecture.of(teacher)).denoiser.build()
    theirs = {key: tensor.shape for key, tensor in teacher.state_dict().items()}
    for key, tensor in student.state_dict().items():
        assert theirs[expected_source(name, key)] == tensor.shape


def test_slim_copies_all_but_its_samplers() -> None:
    teacher = tiny_teacher("sd-v1-4")
    theirs = teacher.state_dict()
    student = build_student("slim-base", Architecture.of(teacher), 0, theirs)
    assert isinstance(student, SlimUNet2DConditionModel)
    fresh = [key for key in student.state_dict() if "samplers" in key]
    assert len(fresh) == 3 * 4 + 3 * 6  # gates of two linear layers; upsamplers also have a convolution
    for key, tensor in student.state_dict().items():
        if key not in fresh:
            assert torch.equal(tensor, theirs[expected_source("slim-base", key)])


@pytest.mark.heavy
def test_a_student_that_removes_nothing_is_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in ("sd-v1-4", "sdxl"):
        everything = UNetRule("all of it", dict, find_rule("block-base").pairs, lambda name: name)
        monkeypatch.setitem(STUDENTS, "everything", everything)
        teacher = tiny_teacher(layout)
        unet = build_student("everything", Architecture.of(teacher), 0, teacher.state_dict())
        student = tapped(unet, teacher, everything)
        taps = FeatureTaps(teacher, student.teacher_names)
        noised, timesteps, condition = inputs(teacher)
        target = denoise(teacher, noised, timesteps, condition)
        prediction, features = student(noised, timesteps, condition)
        assert (prediction - target).abs().max() < 1e-6
        losses = {**output_loss(prediction, target), **feature_loss(student.teacher_names, features, taps.collect())}
        assert all(loss.item() == 0 for loss in losses.values())


@pytest.mark.heavy
@pytest.mark.parametrize(("layout", "name"), NINE + ELSEWHERE)
def test_every_student_trains_and_its_features_meet(layout: str, name: str) -> None:
    teacher = tiny_teacher(layout)
    student = tapped(build_student(name, Architecture.of(teacher), seed=1), teacher, find_rule(name))
    taps = FeatureTaps(teacher, student.teacher_names)
    noised, timesteps, condition = inputs(teacher)
    target = denoise(teacher, noised, timesteps, condition)
    prediction, features = student(noised, timesteps, condition)
    terms = feature_loss(student.teacher_names, features, taps.collect())
    (output_loss(prediction, target)["output"] + sum(terms.values())).backward()
    without = [key for key, p in student.named_parameters() if p.grad is None]
    assert not without, f"no gradient reaches {without[:3]}"
    assert all(p.grad is None for p in teacher.parameters())
    assert any("projectors" in key for key, _ in student.named_parameters()) == name.startswith("channel")


def test_koala_taps_name_what_the_paper_lists() -> None:
    pairs = student_of("koala-1b", tiny("sdxl")).pairs
    attentions = [pair for pair in pairs if pair[0].endswith("attn1")]
    assert len(pairs) == len(attentions) + 2
    assert len(attentions) == 2 + 6 + 6 + (6 + 6) + (2 + 2)  # down 1, down 2, mid, up 0 twice, up 1 twice
    assert ("up_blocks.2.resnets.2.conv2", "up_blocks.2.resnets.1.conv2") in pairs
    assert not [pair for pair in student_of("koala-700m", tiny("sdxl")).pairs if "mid" in pair[0]]


def test_channel_students_of_a_teacher_with_heads_of_fixed_width_keep_them_near_it() -> None:
    with torch.device("meta"):
        teacher = Architecture.of(UNet2DConditionModel(**unet_config("sd-v2-1", tiny=False)))
    base = student_of("channel-base", teacher).denoiser.config
    assert base["block_out_channels"] == (256, 512, 1024, 1024) and base["attention_head_dim"] == [4, 8, 16, 16]


def test_a_slim_students_class_keeps_its_name() -> None:
    """Exported folders name it, and diffusers looks it up under this name."""
    name = SlimUNet2DConditionModel.__module__
    assert name == "randcond.model_zoo.slim"
    assert sys.modules[name].SlimUNet2DConditionModel is SlimUNet2DConditionModel


def test_a_rule_that_applies_is_chosen_for_a_student_of_a_student() -> None:
    for layout, rule in (("sd-v1-4", "block-base"), ("sdxl", "koala-700m")):
        teacher = tiny(layout)
        assert default_rule(teacher) == rule
        assert default_rule(student_of(rule, teacher).denoiser) == "channel-base"


def test_what_a_rule_cannot_do_is_said() -> None:
    with pytest.raises(UserError, match="unknown student 'block-huge'; known: block-base"):
        find_rule("block-huge")
    sd, sdxl = tiny("sd-v1-4"), tiny("sdxl")
    with pytest.raises(UserError, match=r"student.rule: block-tiny: .* this teacher has 3"):
        student_of("block-tiny", sdxl)
    with pytest.raises(UserError, match=r"koala-1b: .* use a block rule"):
        student_of("koala-1b", sd)
    with pytest.raises(UserError, match="layers_per_block is 1, expected 2"):
        student_of("block-base", student_of("block-base", sd).denoiser)
    with pytest.raises(UserError, match="widths differ"):
        build_student("channel-base", sd, 0, tiny_teacher("sd-v1-4").state_dict())
    wider = UNet2DConditionModel(**{**unet_config("sd-v1-4", tiny=True), "cross_attention_dim": 24}).state_dict()
    with pytest.raises(UserError, match=r"copied from the teacher's .*attn2.to_k.weight, which has shape \(32, 24\)"):
        build_student("block-base", sd, 0, wider)


def test_features_that_do_not_meet_are_named() -> None:
    teacher = tiny_teacher("sd-v1-4")
    rule = find_rule("channel-base")
    unet = build_student("channel-base", Architecture.of(teacher), 0)
    assert isinstance(rule, UNetRule)
    bare = UNetRule(rule.summary, rule.config, rule.pairs, None, projected=False)
    with pytest.raises(UserError, match=r"down_blocks.0.downsamplers.0.conv.*\(32, 8, 8\), the student's has \(24, "):
        tapped(unet, teacher, bare)
    shifted = UNetRule("", rule.config, lambda _: [("down_blocks.0", "down_blocks.1")], None, projected=True)
    with pytest.raises(UserError, match="pair other modules"):
        tapped(unet, teacher, shifted)


def test_random_initialisation_follows_its_seed_and_leaves_the_global_one() -> None:
    teacher = tiny("sd-v1-4")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build_student("block-base", teacher, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weight = "conv_in.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


def test_haar_transform_is_orthonormal_and_inverts() -> None:
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    bands = haar_dwt(x)
    assert (haar_idwt(bands) - x).abs().max() < 1e-6
    assert bands.square().sum() == pytest.approx(x.square().sum().item(), rel=1e-6)
    assert torch.allclose(bands[:, 0], 2 * torch.nn.functional.avg_pool2d(x, 2), atol=1e-6)
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).expand(1, 1, 2, 2)
    assert haar_dwt(left).flatten().tolist() == [1.0, 1.0, 0.0, 0.0]  # the only detail of a vertical edge is in LH
    with pytest.raises(UserError, match="must be even"):
        haar_dwt(x[..., :5])
