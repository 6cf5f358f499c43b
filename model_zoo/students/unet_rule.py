"""Rules for U-Nets: a student is another configuration of the teacher's U-Net."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from diffusers import UNet2DConditionModel

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.families.base.family import DenoiserConfig
from randcond.model_zoo.students.rule import FeaturePair, Student, StudentRule, TensorMap


@dataclass(frozen=True)
class UNetRule(StudentRule):
    """Derives a student U-Net from a teacher's configuration."""

    summary: str
    config: Callable[[DenoiserConfig], DenoiserConfig]  # raises UserError if the rule does not apply
    pairs: Callable[[DenoiserConfig], list[FeaturePair]]
    teacher_name: TensorMap | None
    projected: bool = False
    model: type[UNet2DConditionModel] = UNet2DConditionModel

    def derive(self, teacher: Architecture) -> Student:
        if not issubclass(teacher.model, UNet2DConditionModel):
            raise UserError(f"needs a teacher with a U-Net, but this one has a {teacher.model.__name__}")
        denoiser = replace(teacher, model=self.model, config=self.config(teacher.config))
        return Student(denoiser, self.pairs(teacher.config), self.teacher_name, self.projected)

    @property
    def copies(self) -> bool:
        return self.teacher_name is not None

    @property
    def is_of_diffusers(self) -> bool:
        return self.model is UNet2DConditionModel
