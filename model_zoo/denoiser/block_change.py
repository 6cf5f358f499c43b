"""How much each block of a transformer changes its input: a measure of what a student loses without the block."""

from typing import Any

from torch import Tensor, nn

from randcond.model_zoo.families.base.family import Stack, tapped


class BlockChanges:
    """Measures the blocks of a denoiser during its forward passes. Usage: run some, then call `means`.

    The change of a block is |output - input|^2 / |input|^2 of a sample's image tokens (of all tokens where image and
    text are one sequence).
    """

    def __init__(self, network: nn.Module, stack: Stack) -> None:
        """Adds hooks to the blocks of the network's stack."""
        self._sums: list[Tensor | float] = [0.0] * len(stack.names)
        self._samples = 0
        for number, taps in enumerate(stack.taps):
            name, element = tapped(taps[0])  # the image tokens
            network.get_submodule(name).register_forward_hook(self._adding(number, element), with_kwargs=True)

    def _adding(self, number: int, element: int) -> Any:
        def add(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            given = options["hidden_states"] if "hidden_states" in options else inputs[0]
            result = output[element] if isinstance(output, tuple) else output
            before, after = given.float().flatten(1), result.float().flatten(1)  # [B, tokens * C]
            change = (after - before).square().sum(1) / before.square().sum(1)  # [B]
            self._sums[number] = self._sums[number] + change.sum()
            if number == 0:
                self._samples += len(change)

        return add

    def means(self) -> list[float]:
        """Returns the mean change of each block over all samples so far."""
        return [float(total) / self._samples for total in self._sums]


def most_changing(changes: list[float], stack: Stack, counts: tuple[int, ...]) -> list[int]:
    """Returns the numbers of the blocks to keep: of each run of equal blocks, those that change their input most.

    counts: how many of each run. The first and the last block of each run stay in any case.

    >>> most_changing([0.1, 0.5, 0.2, 0.9, 0.3], Stack(("a",) * 5, (("a",),) * 5, (5,)), (3,))
    [0, 3, 4]
    """
    kept, start = [], 0
    for count, length in zip(counts, stack.groups, strict=True):
        ends = {start, start + length - 1}
        others = sorted(set(range(start, start + length)) - ends, key=lambda number: -changes[number])
        kept += sorted([*ends, *others[: count - len(ends)]])
        start += length
    return kept
