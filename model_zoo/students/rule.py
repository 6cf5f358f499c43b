"""The type of a student rule, which derives a student's U-Net from its teacher's."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import UNet2DConditionModel

from randcond.model_zoo.denoiser.configuration import UNetConfig

FeaturePair = tuple[str, str]  # (teacher module, student module), names in the unwrapped networks


@dataclass(frozen=True)
class StudentRule:
    """Derives a student from its teacher."""

    summary: str  # one line for tables and model cards
    config: Callable[[UNetConfig], UNetConfig]  # teacher -> student; raises UserError if the rule does not apply
    pairs: Callable[[UNetConfig], list[FeaturePair]]  # teacher -> the feature pairs of Eq. 2
    # Maps a student tensor name to the teacher tensor to copy, or to None if the tensor starts random.
    # The map itself is None if the widths differ, so that no tensor can be copied.
    teacher_name: Callable[[str], str | None] | None
    projected: bool = False  # trainable 1x1 convolutions project the student's features to the teacher's widths
    model: type[UNet2DConditionModel] = UNet2DConditionModel
