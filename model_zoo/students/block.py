"""BK-SDM's block rules (B-Base, B-Small, B-Tiny): fewer layers per block, the teacher's widths."""

from collections.abc import Callable

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.configuration import UNetConfig
from randcond.model_zoo.students.rule import FeaturePair, StudentRule


def one_layer_less(teacher: UNetConfig, drop_mid: bool) -> UNetConfig:
    """One resnet (and attention) per down block, two per up block; optionally no mid block."""
    if teacher["layers_per_block"] != 2:
        raise UserError(f"block rules need a teacher with layers_per_block 2, not {teacher['layers_per_block']}")
    return {**teacher, "layers_per_block": 1} | ({"mid_block_type": None} if drop_mid else {})


def _block_config(drop_mid: bool = False, drop_innermost: bool = False) -> Callable[[UNetConfig], UNetConfig]:
    """BK-SDM: one layer less per block; optionally no mid block, no innermost stage."""

    def derive(teacher: UNetConfig) -> UNetConfig:
        student = one_layer_less(teacher, drop_mid or drop_innermost)
        if drop_innermost:
            if len(teacher["block_out_channels"]) < 4:
                raise UserError(
                    f"this rule removes the innermost of four stages; "
                    f"this teacher has {len(teacher['block_out_channels'])}: take block-small, or a koala rule"
                )
            stages = len(teacher["block_out_channels"])
            for key, value in teacher.items():  # every setting that is given per stage loses the innermost one's
                if isinstance(value, (list, tuple)) and len(value) == stages:
                    student[key] = value[1:] if key == "up_block_types" else value[:-1]
        return student

    return derive


def block_name(drop_innermost: bool = False) -> Callable[[str], str]:
    """Student -> teacher names: in up blocks layer 1 <- layer 2; B-Tiny's up blocks sit one further in."""

    def teacher_name(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "up_blocks":
            if drop_innermost:
                parts[1] = str(int(parts[1]) + 1)
            if parts[2] in {"resnets", "attentions"} and parts[3] == "1":
                parts[3] = "2"
        return ".".join(parts)

    return teacher_name


def _block_pairs(teacher: UNetConfig) -> list[FeaturePair]:
    """The outputs of every down and up block, same names on both sides (paper Sec. 4.2)."""
    stages = len(teacher["block_out_channels"])
    names = [f"{side}_blocks.{stage}" for side in ("down", "up") for stage in range(stages)]
    return [(name, name) for name in names]


def _tiny_pairs(teacher: UNetConfig) -> list[FeaturePair]:
    """B-Tiny's taps: the student's up blocks answer to the teacher's next outer ones."""
    last = len(teacher["block_out_channels"]) - 2  # the student's innermost stage has no downsampler
    downs = [(f"down_blocks.{stage}", f"down_blocks.{stage}") for stage in range(last)]
    inner = (f"down_blocks.{last}.attentions.1.proj_out", f"down_blocks.{last}.attentions.0.proj_out")
    ups = [(f"up_blocks.{stage + 1}", f"up_blocks.{stage}") for stage in range(last + 1)]
    return [*downs, inner, *ups]


BLOCK_RULES = {
    "base": StudentRule("one layer less in every block", _block_config(), _block_pairs, block_name()),
    "small": StudentRule("block-base, no mid block", _block_config(drop_mid=True), _block_pairs, block_name()),
    "tiny": StudentRule(
        "block-small, no innermost stage", _block_config(drop_innermost=True), _tiny_pairs, block_name(True)
    ),
}
