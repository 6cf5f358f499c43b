"""Feature taps and the tapped student: what Eq. 2 compares, captured by forward hooks on unwrapped module names.

The projectors live inside the module whose forward the engine runs, so that their gradients are reduced with the
student's; export leaves them behind.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.condition import Condition, blank_forward, denoise
from randcond.model_zoo.denoiser.configuration import UNetConfig, once_per_configuration, plain_config
from randcond.model_zoo.students.rule import StudentRule


class Tap:
    """One module's forward hook: keeps its latest output.

    An object that writes to itself, whenever it is called: torch.compile then finds the hooks of all repeated blocks
    alike and compiles one block, not one per name, and a block that activation checkpointing runs again traces as it
    did the first time.
    """

    def __init__(self) -> None:
        self.feature: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        """Called by torch after the module's forward; a block that returns (hidden state, skips) gives the former."""
        self.feature = output[0] if isinstance(output, tuple) else output


class FeatureTaps:
    """Captures the outputs of named submodules: `forget`, forward, `collect`.

    Put the taps on before `torch.compile`, which ignores later hooks.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        """Raises UserError naming the module that the network does not have."""
        self.taps: dict[str, Tap] = {}
        self.handles: list[RemovableHandle] = []
        modules = dict(network.named_modules())
        for name in names:
            if name not in modules:
                raise UserError(f"feature tap: the network has no module {name}")
            self.taps[name] = Tap()
            self.handles.append(modules[name].register_forward_hook(self.taps[name]))

    def forget(self) -> None:
        """Lets go of everything captured so far: the next `collect` is of the next forward."""
        for tap in self.taps.values():
            tap.feature = None

    def collect(self) -> list[Tensor]:
        """The features of the forward since `forget`, in the order of the names; forgets them.

        Raises RuntimeError naming a tap that captured nothing.
        """
        features = {name: tap.feature for name, tap in self.taps.items() if tap.feature is not None}
        self.forget()
        if missing := [name for name in self.taps if name not in features]:
            raise RuntimeError(f"feature taps captured nothing at {', '.join(missing)}: did the forward run?")
        return list(features.values())

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self.handles:
            handle.remove()


class TappedStudent(nn.Module):
    """Student U-Net, its taps and the projectors to the teacher's widths: the module the engine trains."""

    def __init__(
        self, unet: UNet2DConditionModel, teacher: UNet2DConditionModel, rule: StudentRule, seed: int = 0
    ) -> None:
        """Raises UserError naming the first pair of features that do not meet."""
        super().__init__()
        self.unet = unet
        config = plain_config(teacher.config)
        pairs = rule.pairs(config)
        self.teacher_names = [theirs for theirs, _ in pairs]  # what to tap of the teacher
        self.taps = FeatureTaps(unet, [student for _, student in pairs])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projectors = nn.ModuleList(projectors((type(unet), plain_config(unet.config)), config, rule))
        unet.conv_in.register_forward_hook(self._forget_after_backward)

    def _forget_after_backward(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        """Drops what checkpointed blocks gave when they ran again: conv_in's gradient is the backward's last."""
        if output.requires_grad and not torch.compiler.is_compiling():
            output.register_hook(lambda _: self.taps.forget())

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        """noised [B, C, h, w], timesteps [B], condition -> prediction [B, C, h, w], features in teacher's widths."""
        self.taps.forget()
        prediction = denoise(self.unet, noised, timesteps, condition)
        features = self.taps.collect()
        return prediction, [project(feature) for project, feature in zip(self.projectors, features, strict=True)]


def projectors(
    student: tuple[type[UNet2DConditionModel], UNetConfig], teacher: UNetConfig, rule: StudentRule
) -> list[nn.Module]:
    """A trainable 1x1 convolution per pair where the rule is projected, nothing to do where it is not.

    student: class and configuration. Raises UserError naming the pair whose features cannot be compared.
    """
    pairs = rule.pairs(teacher)
    ours = feature_shapes(*student, [name for _, name in pairs])
    theirs = feature_shapes(UNet2DConditionModel, teacher, [name for name, _ in pairs])
    found: list[nn.Module] = []
    for pair, mine, its in zip(pairs, ours, theirs, strict=True):
        facing = f"feature pair {pair[0]} : {pair[1]}: the teacher gives {its[1:]}, the student {mine[1:]}"
        if len(mine) == len(its) == 4 and mine[2:] == its[2:]:  # [B, C, h, w]
            projector: nn.Module = nn.Conv2d(mine[1], its[1], kernel_size=1)
        elif len(mine) == len(its) == 3 and mine[1] == its[1]:  # [B, tokens, C]: the same map, written as a layer
            projector = nn.Linear(mine[2], its[2])
        else:
            raise UserError(f"{facing}; no 1x1 convolution can bring them together: pair other modules")
        if not rule.projected and mine != its:
            raise UserError(f"{facing}; set projected=True in the student's rule, or pair modules of one width")
        found.append(projector if rule.projected else nn.Identity())
    return found


@once_per_configuration
@torch.no_grad()
def feature_shapes(
    model: type[UNet2DConditionModel], config: Mapping[str, Any], names: list[str]
) -> list[tuple[int, ...]]:
    """Shape of each tapped feature at batch 1, by a forward of shapes only (meta device: costs no arithmetic)."""
    with torch.device("meta"):
        shadow = model.from_config(plain_config(config))
        taps = FeatureTaps(shadow, names)
        blank_forward(shadow, tokens=1)
    return [tuple(feature.shape) for feature in taps.collect()]
