"""Feature taps and the tapped student: what Eq. 2 compares, captured by forward hooks on unwrapped module names.

The projectors live inside the module whose forward the engine runs, so that their gradients are reduced with the
student's; export leaves them behind.
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from randcond.model_zoo.students import FeaturePair


class FeatureTaps:
    """Captures the outputs of named submodules during a forward.

    A block that returns (hidden state, skips) gives its hidden state.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        """Raises ValueError naming the module that the network does not have."""
        self.captured: dict[str, Tensor] = {}
        self.names = list(names)
        self.handles: list[RemovableHandle] = []
        modules = dict(network.named_modules())
        for name in self.names:
            if name not in modules:
                raise ValueError(f"feature tap: the network has no module {name}")
            self.handles.append(modules[name].register_forward_hook(self._keep(name)))

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self.captured[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def collect(self) -> list[Tensor]:
        """The features of the last forward, in the order of the names; forgets them.

        Raises RuntimeError naming a tap that captured nothing.
        """
        missing = [name for name in self.names if name not in self.captured]
        if missing:
            raise RuntimeError(f"feature taps captured nothing at {', '.join(missing)}: did the forward run?")
        features = [self.captured[name] for name in self.names]
        self.captured = {}
        return features

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self.handles:
            handle.remove()


class TappedStudent(nn.Module):
    """Student U-Net, its taps and the 1x1 projectors to the teacher's widths: the module the engine trains."""

    def __init__(
        self, unet: UNet2DConditionModel, teacher: UNet2DConditionModel, pairs: list[FeaturePair], seed: int = 0
    ) -> None:
        super().__init__()
        self.unet = unet
        self.taps = FeatureTaps(unet, [student for _, student in pairs])
        ours, theirs = feature_widths(unet, [s for _, s in pairs]), feature_widths(teacher, [t for t, _ in pairs])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projectors = nn.ModuleList(
                nn.Identity() if mine == its else nn.Conv2d(mine, its, kernel_size=1)
                for mine, its in zip(ours, theirs, strict=True)
            )

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """noised [B, C, h, w], timesteps [B], condition [B, L, width] -> epsilon [B, C, h, w], features."""
        epsilon = self.unet(noised, timesteps, condition, return_dict=False)[0]
        features = self.taps.collect()
        return epsilon, [project(feature) for project, feature in zip(self.projectors, features, strict=True)]


@torch.no_grad()
def feature_widths(unet: UNet2DConditionModel, names: list[str]) -> list[int]:
    """Channels of each tapped feature, by a forward of shape only (meta device: costs no arithmetic)."""
    with torch.device("meta"):
        shadow = type(unet).from_config(unet.config)
    taps = FeatureTaps(shadow, names)
    config = shadow.config
    size = config.sample_size
    shadow(
        torch.zeros(1, config.in_channels, size, size, device="meta"),
        torch.zeros(1, device="meta"),
        torch.zeros(1, 1, config.cross_attention_dim, device="meta"),
    )
    return [feature.shape[1] for feature in taps.collect()]
