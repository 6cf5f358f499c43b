"""BK-SDM's block rules (B-Base, B-Small, B-Tiny): fewer layers per block, with the teacher's widths."""

from collections.abc import Callable

from randcond.launch.errors import UserError
from randcond.model_zoo.families.base.family import DenoiserConfig
from randcond.model_zoo.students.rule import FeaturePair
from randcond.model_zoo.students.unet_rule import UNetRule


def one_layer_less(teacher: DenoiserConfig, drop_mid: bool) -> DenoiserConfig:
    """Returns a configuration with one resnet (and attention) per down block, two per up block.

    `drop_mid` removes the mid block. Raises UserError if the teacher's layers_per_block is not 2, or if its layers
    differ in their numbers of transformer blocks.
    """
    depths = teacher.get("transformer_layers_per_block", 1)
    if not isinstance(depths, int) and not all(isinstance(depth, int) for depth in depths):
        raise UserError(
            f"the teacher's transformer_layers_per_block is {depths}, expected one number or one per stage; use a "
            f"channel rule"
        )
    if teacher.get("reverse_transformer_layers_per_block"):
        raise UserError(
            "the teacher has reverse_transformer_layers_per_block, expected equal depths going down and up; use a "
            "channel rule"
        )
    if teacher["layers_per_block"] != 2:
        raise UserError(
            f"the teacher's layers_per_block is {teacher['layers_per_block']}, expected 2; use a channel rule"
        )
    return {**teacher, "layers_per_block": 1} | ({"mid_block_type": None} if drop_mid else {})


def _block_config(drop_mid: bool = False, drop_innermost: bool = False) -> Callable[[DenoiserConfig], DenoiserConfig]:
    """Returns a function from the teacher's configuration to that of a BK-SDM student: one layer less per block.

    `drop_mid` removes the mid block. `drop_innermost` removes the mid block and the innermost stage.
    """

    def derive(teacher: DenoiserConfig) -> DenoiserConfig:
        student = one_layer_less(teacher, drop_mid or drop_innermost)
        if drop_innermost:
            if len(teacher["block_out_channels"]) < 4:
                raise UserError(
                    f"the rule removes the innermost of four stages, "
                    f"but this teacher has {len(teacher['block_out_channels'])}; use block-small or a koala rule"
                )
            stages = len(teacher["block_out_channels"])
            for key, value in teacher.items():  # settings with one value per stage lose the innermost
                if isinstance(value, (list, tuple)) and len(value) == stages:
                    student[key] = value[1:] if key == "up_block_types" else value[:-1]
        return student

    return derive


def block_name(drop_innermost: bool = False) -> Callable[[str], str]:
    """Returns the map from student tensor names to teacher tensor names.

    In up blocks, the student's layer 1 takes the weights of the teacher's layer 2.
    With `drop_innermost` (B-Tiny), the student's up block i takes the weights of the teacher's up block i + 1.
    """

    def teacher_name(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "up_blocks":
            if drop_innermost:
                parts[1] = str(int(parts[1]) + 1)
            if parts[2] in {"resnets", "attentions"} and parts[3] == "1":
                parts[3] = "2"
        return ".".join(parts)

    return teacher_name


def _block_pairs(teacher: DenoiserConfig) -> list[FeaturePair]:
    """Returns the outputs of all down and up blocks. Teacher and student use the same names (paper Sec. 4.2)."""
    stages = len(teacher["block_out_channels"])
    names = [f"{side}_blocks.{stage}" for side in ("down", "up") for stage in range(stages)]
    return [(name, name) for name in names]


def _tiny_pairs(teacher: DenoiserConfig) -> list[FeaturePair]:
    """Returns the feature pairs of B-Tiny. The student's up block i is compared with the teacher's up block i + 1."""
    last = len(teacher["block_out_channels"]) - 2  # the student's innermost stage has no downsampler
    downs = [(f"down_blocks.{stage}", f"down_blocks.{stage}") for stage in range(last)]
    innermost = (f"down_blocks.{last}.attentions.1.proj_out", f"down_blocks.{last}.attentions.0.proj_out")
    ups = [(f"up_blocks.{stage + 1}", f"up_blocks.{stage}") for stage in range(last + 1)]
    return [*downs, innermost, *ups]


BLOCK_RULES = {
    "base": UNetRule("one layer less in every block", _block_config(), _block_pairs, block_name()),
    "small": UNetRule("block-base, no mid block", _block_config(drop_mid=True), _block_pairs, block_name()),
    "tiny": UNetRule(
        "block-small, no innermost stage", _block_config(drop_innermost=True), _tiny_pairs, block_name(True)
    ),
}
