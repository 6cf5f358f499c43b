"""An architecture is measured once, however its measurement is called."""

from diffusers import UNet2DConditionModel

from randcond.model_zoo.denoiser.architecture import Architecture, once_per_architecture


def test_a_measurement_runs_once_per_architecture_and_arguments() -> None:
    ran: list[int | None] = []

    @once_per_architecture
    def measure(denoiser: Architecture, tokens: int | None = None) -> int | None:
        ran.append(tokens)
        return tokens

    tuples, lists, narrow = (
        Architecture(UNet2DConditionModel, {"in_channels": 4, "sample_size": 8, "widths": widths})
        for widths in ((320, 640), [320, 640], (320,))
    )
    for same in (tuples, lists, tuples.at(8)):  # 8 is their own side
        assert measure(same) is measure(same, None) is measure(same, tokens=None) is None
    assert ran == [None]
    assert measure(tuples, 7) == measure(lists, tokens=7) == 7
    measure(narrow)
    measure(tuples.at(16))
    assert ran == [None, 7, None, None]
