"""A U-Net's configuration is measured once, however its measurement is called."""

from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel

from randcond.model_zoo.denoiser.configuration import once_per_configuration


def test_a_measurement_runs_once_per_configuration_and_arguments() -> None:
    ran: list[int] = []

    @once_per_configuration
    def measure(model: type[UNet2DConditionModel], config: Mapping[str, Any], tokens: int = 77) -> int:
        ran.append(tokens)
        return tokens

    same = {"widths": (320, 640)}, {"widths": [320, 640], "_name_or_path": "here"}
    for config in same:
        assert measure(UNet2DConditionModel, config) == measure(UNet2DConditionModel, config, 77) == 77
        assert measure(UNet2DConditionModel, config, tokens=77) == 77
    assert ran == [77]
    assert measure(UNet2DConditionModel, same[0], 7) == measure(UNet2DConditionModel, same[0], tokens=7) == 7
    measure(UNet2DConditionModel, {"widths": (320,)})
    assert ran == [77, 7, 77]
