"""Students as rules: the paper's sizes, bit-equal teacher weights, features that meet."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from randcond.launch.config import PACKAGE
from randcond.model_zoo.features import FeatureTaps, TappedStudent
from randcond.model_zoo.students import STUDENTS, build_student, find_rule, student_config
from randcond.train.losses import feature_losses, output_loss

SD14 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}


@pytest.fixture(scope="module")
def teacher() -> UNet2DConditionModel:
    folder = PACKAGE / "data" / "digits" / "models" / "teacher" / "unet"
    return UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "millions"),  # Table A, U-Net parameters of SD v1.4's students
    [
        ("block-base", 579.4),
        ("block-small", 482.3),
        ("block-tiny", 323.4),
        ("channel-base", 553.2),
        ("channel-small", 425.3),
        ("channel-tiny", 314.1),
        ("channel-micro", 219.8),
    ],
)
def test_sizes_of_table_a(name: str, millions: float) -> None:
    with torch.device("meta"):
        sd = UNet2DConditionModel(**SD14)
        student = UNet2DConditionModel.from_config(student_config(name, sd.config))
    assert round(sum(p.numel() for p in sd.parameters()) / 1e6, 1) == 859.5
    assert round(sum(p.numel() for p in student.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("name", ["block-base", "block-small", "block-tiny"])
def test_teacher_weights_are_copied_bit_by_bit(name: str, teacher: UNet2DConditionModel) -> None:
    student = build_student(name, teacher, "teacher", seed=0)
    theirs = teacher.state_dict()
    expected = {  # the block map in the paper's words, not the rule's code
        "block-tiny": lambda key: f"up_blocks.{int(key.split('.')[1]) + 1}.",
    }
    compared = 0
    for key, tensor in student.state_dict().items():
        source = key
        if key.startswith("up_blocks"):
            shift = expected.get(name)
            if shift:
                source = shift(key) + ".".join(key.split(".")[2:])
            for layer in ("resnets", "attentions"):
                source = source.replace(f".{layer}.1.", f".{layer}.2.")
        assert torch.equal(tensor, theirs[source]), f"{key} is not {source}"
        compared += 1
    assert compared == len(list(student.state_dict()))


def test_channel_students_take_no_teacher_weights(teacher: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="widths differ"):
        build_student("channel-base", teacher, "teacher", seed=0)


def test_unknown_student_and_a_rule_that_cannot_apply() -> None:
    with pytest.raises(ValueError, match="unknown student 'block-huge'; known: block-base"):
        find_rule("block-huge")
    three = UNet2DConditionModel(
        block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
    )
    with pytest.raises(ValueError, match="this teacher has 3"):
        build_student("block-tiny", three, "random", seed=0)


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_trains_and_its_features_meet(name: str, teacher: UNet2DConditionModel) -> None:
    pairs = find_rule(name).pairs(dict(teacher.config))
    student = TappedStudent(build_student(name, teacher, "random", seed=1), teacher, pairs)
    taps = FeatureTaps(teacher, [theirs for theirs, _ in pairs])
    noised, timesteps, text = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 16, 64)
    target = teacher(noised, timesteps, text).sample
    epsilon, features = student(noised, timesteps, text)
    terms = feature_losses([theirs for theirs, _ in pairs], features, taps.collect())
    (output_loss(epsilon, target).mean() + sum(terms.values())).backward()
    taps.remove()
    without = [key for key, p in student.named_parameters() if p.grad is None]
    assert not without, f"no gradient reaches {without[:3]}"
    assert all(p.grad is None for p in teacher.parameters())
    assert any("projectors" in key for key, _ in student.named_parameters()) == name.startswith("channel")


def test_random_initialisation_follows_its_seed_and_leaves_the_global_one(teacher: UNet2DConditionModel) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build_student("block-base", teacher, "random", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weight = "conv_in.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


def test_taps_name_what_is_missing(teacher: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match=r"no module mid_block\.attentions\.7"):
        FeatureTaps(teacher, ["mid_block.attentions.7"])
    taps = FeatureTaps(teacher, ["mid_block"])
    with pytest.raises(RuntimeError, match="captured nothing at mid_block"):
        taps.collect()
    taps.remove()


def test_losses_against_float64() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    exact = ((ours.double() - theirs.double()) ** 2).mean(dim=(1, 2, 3))
    assert torch.allclose(output_loss(ours, theirs).double(), exact, rtol=1e-5)
    half = output_loss(ours.bfloat16(), theirs.bfloat16())
    assert half.dtype == torch.float32
    terms = feature_losses(["a", "b"], [ours, ours[:, :2]], [theirs, theirs[:, :2]])
    for name, width in (("a", 4), ("b", 2)):
        exact = ((ours[:, :width].double() - theirs[:, :width].double()) ** 2).mean()
        assert abs(terms[name].item() - exact.item()) < 1e-5 * exact.item()
