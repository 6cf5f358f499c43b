"""Feature taps, projectors and the tapped student: they produce the features that Eq. 2 compares.

Taps are forward hooks on modules of the unwrapped network. The projectors are part of the module that the engine
trains, so that their gradients are reduced together with the student's. Export leaves them out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.blank_run import blank_run
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.families.base.family import Condition, tapped
from randcond.model_zoo.families.registry import family_of
from randcond.model_zoo.students.rule import Student


class Tap:
    """Forward hook of one module that keeps the module's latest output.

    The hook stores the output in its own attribute at every call. The hooks of all repeated blocks therefore look the
    same to torch.compile, which compiles one block instead of one per name. A block that activation checkpointing
    runs again also traces as it did the first time.
    """

    def __init__(self, element: int) -> None:
        """`element`: which output of a module that returns several."""
        self.element = element
        self.feature: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        """Stores the output of the module's forward pass.

        The first output of a U-Net's block is the hidden state [B, C, h, w]; skips follow.
        """
        self.feature = output[self.element] if isinstance(output, tuple) else output


class FeatureTaps:
    """Captures the outputs of named submodules. Usage: `forget()`, run the forward pass, `collect()`.

    A name such as "block[1]" means the second output of a module that returns several.
    Create the taps before calling `torch.compile`, which ignores hooks that are added later.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        """Adds a tap to each named submodule. Raises UserError if the network has no such module."""
        self.taps: dict[str, Tap] = {}
        self.handles: list[RemovableHandle] = []
        modules = dict(network.named_modules())
        for name in names:
            module, element = tapped(name)
            if module not in modules:
                raise UserError(f"feature tap: the network has no module {module}")
            self.taps[name] = Tap(element)
            self.handles.append(modules[module].register_forward_hook(self.taps[name]))

    def forget(self) -> None:
        """Discards all captured features, so that the next `collect` returns those of the next forward pass only."""
        for tap in self.taps.values():
            tap.feature = None

    def collect(self) -> list[Tensor]:
        """Returns and discards the features captured since `forget`, in the order of the names.

        Features are [B, C, h, w] or [B, tokens, C]. Raises RuntimeError naming the taps that captured nothing.
        """
        features = {name: tap.feature for name, tap in self.taps.items() if tap.feature is not None}
        self.forget()
        if missing := [name for name in self.taps if name not in features]:
            raise RuntimeError(f"feature taps captured nothing at {', '.join(missing)}: did the forward run?")
        return list(features.values())

    def remove(self) -> None:
        """Removes the hooks."""
        for handle in self.handles:
            handle.remove()


class TappedStudent(nn.Module):
    """The module that the engine trains: the student's denoiser, its taps, and projectors to the teacher's widths.

    The denoiser has its name in a pipeline, "unet" or "transformer", so that checkpoints name it as folders do.
    """

    def __init__(self, network: nn.Module, student: Student, teacher: Architecture, seed: int = 0) -> None:
        """`network`: the student's denoiser. `seed` initialises the projectors.

        Raises UserError naming the first feature pair that cannot be compared.
        """
        super().__init__()
        family = family_of(type(network))
        self.part = family.part
        self.add_module(self.part, network)
        self.teacher_names = [teacher_name for teacher_name, _ in student.pairs]  # modules of the teacher to tap
        self.taps = FeatureTaps(network, [student_name for _, student_name in student.pairs])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projectors = nn.ModuleList(projectors(student, teacher))
        family.first_layer(network).register_forward_hook(self._forget_after_backward)

    @property
    def network(self) -> Any:
        """The student's denoiser."""
        return self.get_submodule(self.part)

    def _forget_after_backward(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        """Discards the features that checkpointed blocks capture when they run again in the backward pass.

        The gradient of the first layer's output comes last in the backward pass, so its hook runs after all blocks.
        """
        if output.requires_grad and not torch.compiler.is_compiling():
            output.register_hook(lambda _: self.taps.forget())

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        """Returns the prediction [B, C, h, w] and the features, projected to the teacher's widths.

        noised: x_t [B, C, h, w]. timesteps: [B]. condition: as the family encodes it.
        """
        self.taps.forget()
        prediction = denoise(self.network, noised, timesteps, condition)
        features = self.taps.collect()
        return prediction, [project(feature) for project, feature in zip(self.projectors, features, strict=True)]


def projectors(student: Student, teacher: Architecture) -> list[nn.Module]:
    """Returns one projector per feature pair, from the student's width to the teacher's.

    A projector is a trainable 1x1 convolution if the student is projected, else the identity.
    Raises UserError naming a pair whose features cannot be compared.
    """
    pairs = student.pairs
    student_shapes = feature_shapes(student.denoiser, [student_name for _, student_name in pairs])
    teacher_shapes = feature_shapes(teacher, [teacher_name for teacher_name, _ in pairs])
    modules: list[nn.Module] = []
    for (teacher_name, student_name), target, source in zip(pairs, teacher_shapes, student_shapes, strict=True):
        problem = (
            f"feature pair {teacher_name} : {student_name}: the teacher's feature has shape {target[1:]}, "
            f"the student's has {source[1:]}"
        )
        if len(source) == len(target) == 4 and source[2:] == target[2:]:  # [B, C, h, w]
            projector: nn.Module = nn.Conv2d(source[1], target[1], kernel_size=1)
        elif len(source) == len(target) == 3 and source[1] == target[1]:  # [B, tokens, C]: a linear layer is the same
            projector = nn.Linear(source[2], target[2])
        else:
            raise UserError(f"{problem}; a 1x1 convolution cannot convert between them: pair other modules")
        if not student.projected and source != target:
            raise UserError(f"{problem}; set projected=True in the student's rule, or pair modules of the same width")
        modules.append(projector if student.projected else nn.Identity())
    return modules


def feature_shapes(denoiser: Architecture, names: list[str]) -> list[tuple[int, ...]]:
    """Returns the shape of each tapped feature at batch 1: (1, C, h, w) or (1, tokens, C).

    Raises UserError if the network has no such module.
    """
    shapes = blank_run(denoiser).shapes
    if missing := [name for name in names if name not in shapes]:
        raise UserError(f"feature tap: the network has no module {missing[0]}")
    return [shapes[name] for name in names]
