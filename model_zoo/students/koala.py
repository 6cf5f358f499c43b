"""KOALA's rules for SDXL: one layer less per block, and fewer transformer blocks in the innermost stage."""

from collections.abc import Callable

from randcond.launch.errors import UserError
from randcond.model_zoo.families.base.family import DenoiserConfig
from randcond.model_zoo.students.block import block_name, one_layer_less
from randcond.model_zoo.students.rule import FeaturePair
from randcond.model_zoo.students.unet_rule import UNetRule


def _koala_config(kept: float, drop_mid: bool) -> Callable[[DenoiserConfig], DenoiserConfig]:
    """Returns a function from the teacher's configuration to that of a KOALA student.

    The student has one layer less per block, and the share `kept` of the transformer blocks in the innermost stage.
    """

    def derive(teacher: DenoiserConfig) -> DenoiserConfig:
        depths = teacher["transformer_layers_per_block"]
        if isinstance(depths, int) or not isinstance(depths[-1], int) or depths[-1] < 2:
            raise UserError(
                f"koala rules need several transformer blocks in the innermost stage, but this teacher's "
                f"transformer_layers_per_block is {depths}; use a block rule"
            )
        student = one_layer_less(teacher, drop_mid)
        student["transformer_layers_per_block"] = [*depths[:-1], max(1, round(depths[-1] * kept))]
        return student

    return derive


def _koala_pairs(kept: float, drop_mid: bool) -> Callable[[DenoiserConfig], list[FeaturePair]]:
    """Returns a function from the teacher's configuration to KOALA's feature pairs.

    The pairs are the self-attentions of all kept transformer blocks, and the outermost convolutions.
    """
    derive = _koala_config(kept, drop_mid)

    def pairs(teacher: DenoiserConfig) -> list[FeaturePair]:
        depths = derive(teacher)["transformer_layers_per_block"]
        last = len(depths) - 1

        def attentions(teacher_stack: str, depth: int, student_stack: str | None = None) -> list[FeaturePair]:
            blocks = [f"transformer_blocks.{number}.attn1" for number in range(depth)]
            return [(f"{teacher_stack}.{block}", f"{student_stack or teacher_stack}.{block}") for block in blocks]

        taps = [("down_blocks.0.downsamplers.0.conv",) * 2]
        for stage in range(1, last + 1):
            taps += attentions(f"down_blocks.{stage}.attentions.0", depths[stage])
        if not drop_mid:
            taps += attentions("mid_block.attentions.0", depths[last])
        for stage in range(last):
            up, depth = f"up_blocks.{stage}.attentions", depths[last - stage]
            taps += attentions(f"{up}.0", depth) + attentions(f"{up}.2", depth, student_stack=f"{up}.1")
        return [*taps, (f"up_blocks.{last}.resnets.2.conv2", f"up_blocks.{last}.resnets.1.conv2")]

    return pairs


def koala_rule(kept: float, drop_mid: bool, summary: str) -> UNetRule:
    """Returns the rule for a KOALA student that keeps the share `kept` of the innermost transformer blocks."""
    return UNetRule(summary, _koala_config(kept, drop_mid), _koala_pairs(kept, drop_mid), block_name())
