"""What a student rule is: how a student's U-Net follows from its teacher's."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import UNet2DConditionModel

from randcond.model_zoo.denoiser.configuration import UNetConfig

FeaturePair = tuple[str, str]  # (teacher module, student module), unwrapped names


@dataclass(frozen=True)
class StudentRule:
    """How a student is derived from its teacher; every function takes the teacher's U-Net configuration or names."""

    summary: str
    config: Callable[[UNetConfig], UNetConfig]  # raises UserError where the rule does not apply
    pairs: Callable[[UNetConfig], list[FeaturePair]]  # the taps of Eq. 2
    # Student tensor -> teacher tensor, None for one that starts random; None for the whole map: sizes differ, no copy.
    teacher_name: Callable[[str], str | None] | None
    projected: bool = False  # features go through trainable 1x1 convolutions to the teacher's widths
    model: type[UNet2DConditionModel] = UNet2DConditionModel
