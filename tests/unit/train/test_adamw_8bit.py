"""AdamW with moments in 8 bits: what is stored, how exactly, and that its steps are those of torch's AdamW."""

import weakref

import pytest
import torch
from torch import Tensor

from randcond.train.engine import adamw_8bit
from randcond.train.engine.adamw_8bit import BLOCK, AdamW8bit, Stored, code_values
from randcond.train.engine.base import Engine, Piece

# The largest error of a stored value, as a share of the largest value of its block: half of the widest gap of codes.
BOUNDS = {True: 0.0108, False: 0.0038}
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 1e-2}


def moments(size: int, signed: bool, seed: int = 0) -> Tensor:
    """Returns values over many orders of magnitude, with a block of zeros and one whose largest value is negative."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator) * 10 ** torch.empty(size).uniform_(-12, 2, generator=generator)
    values[:BLOCK] = 0
    values[BLOCK] = -1e4
    return values if signed else values.square()


def stored(values: Tensor, signed: bool) -> Stored:
    """Returns values in 8 bits."""
    found = Stored.zeros(values.numel(), signed, values.device)
    found.write(values)
    return found


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [3 * BLOCK, 20 * BLOCK + 7])
def test_what_was_read_and_is_stored_again_is_the_same(size: int, signed: bool) -> None:
    """This makes a resume exact: checkpoints hold the values in fp32."""
    for seed in range(20):
        one = stored(moments(size, signed, seed), signed)
        other = stored(one.read(0, size), signed)
        assert torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales)
    new = Stored.zeros(size, signed, torch.device("cpu"))
    again = stored(new.read(0, size), signed)
    assert torch.equal(new.codes, again.codes) and torch.equal(new.scales, again.scales)


@pytest.mark.parametrize("signed", [True, False])
def test_each_stored_value_is_near(signed: bool) -> None:
    values = moments(40 * BLOCK, signed)
    found = stored(values, signed).read(0, values.numel())
    largest = values.view(-1, BLOCK).abs().amax(1, keepdim=True)
    error = ((found - values).view(-1, BLOCK).abs() / largest)[1:]  # the first block is zeros
    assert 0.5 * BOUNDS[signed] < error.max() <= BOUNDS[signed]
    assert torch.equal(found.view(-1, BLOCK).abs().amax(1, keepdim=True)[1:], largest[1:])  # the largest is exact
    assert signed or (found > 0).all()  # a second moment of 0 would give a huge update


@pytest.mark.parametrize("signed", [True, False])
def test_the_codes_stand_for_256_values(signed: bool) -> None:
    values = code_values(signed, torch.device("cpu"))
    assert len(values.unique()) == 256 and torch.equal(values, values.sort().values)
    assert values[-1] == 1 and values[0] == (-1 if signed else torch.tensor(1e-7))
    assert not signed or 0 in values


def test_a_range_is_read_as_a_part_of_the_whole() -> None:
    found = stored(moments(5 * BLOCK + 3, True), True)
    whole = found.read(0, found.size)
    for start, stop in ((0, 1), (255, 257), (300, 900), (1282, 1283), (0, 1283), (7, 7)):
        assert torch.equal(found.read(start, stop), whole[start:stop])


def parameters(sizes: list[int], seed: int = 0) -> list[torch.nn.Parameter]:
    """Returns parameters with gradients."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
    for each in found:
        each.grad = torch.randn(each.shape, generator=generator)
    return found


def test_a_step_is_torchs_on_the_stored_moments() -> None:
    """The first step has the bits of AdamW. Before each later one, AdamW gets the moments that were stored."""
    ours, theirs = parameters([1000, 300]), parameters([1000, 300])
    eight, fused = AdamW8bit(ours, **SETTINGS), torch.optim.AdamW(theirs, **SETTINGS, fused=True)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            if step:
                for name in adamw_8bit.MOMENTS:
                    fused.state[other][name].copy_(eight.state[one][name].read(0, one.numel()))
        eight.step()
        fused.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other) and eight.state[one]["step"] == step + 1


def test_parameters_are_updated_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [5 * BLOCK, 3, 700, 2 * BLOCK + 1, 1]
    found = {}
    for chunk in (BLOCK, 3 * BLOCK, 1 << 22):
        monkeypatch.setattr(adamw_8bit, "CHUNK", chunk)
        each = parameters(sizes)
        each.append(torch.nn.Parameter(torch.ones(9)))  # no gradient: is not changed
        optimizer = AdamW8bit(each, **SETTINGS)
        for _ in range(3):
            optimizer.step()
        assert torch.equal(each[-1], torch.ones(9))
        held = [optimizer.state[p][name] for p in each[:-1] for name in adamw_8bit.MOMENTS]
        found[chunk] = [*(p.detach() for p in each), *(s.codes for s in held), *(s.scales for s in held)]
    for other in list(found.values())[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[BLOCK], other, strict=True))


def test_moments_take_a_quarter_of_the_bytes() -> None:
    (parameter,) = parameters([1 << 20])
    optimizer = AdamW8bit([parameter], **SETTINGS)
    optimizer.step()
    held = [optimizer.state[parameter][name] for name in adamw_8bit.MOMENTS]
    size = sum(tensor.nbytes for each in held for tensor in (each.codes, each.scales))
    assert size == 2 * (1 + 4 / 256) * parameter.numel()


class OneRank(Engine):
    """An engine's state without its training step."""

    def __init__(self, optimizer: AdamW8bit, masters: list[torch.nn.Parameter]) -> None:
        self.optimizer, self.ema = optimizer, None
        self.pieces = [Piece(f"p{number}", 0, master.data) for number, master in enumerate(masters)]
        self.masters = masters

    def master_of(self, piece: Piece) -> tuple[Tensor, int]:
        return self.masters[int(piece.name.removeprefix("p"))], 0


def test_a_checkpoint_decodes_one_moment_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    masters = parameters([700, 300, 5, 2000])
    optimizer = AdamW8bit(masters, 0.01, (0.9, 0.999), 1e-8, 0.0)
    optimizer.step()
    engine, read = OneRank(optimizer, masters), Stored.read
    decoded: list[weakref.ref[Tensor]] = []

    def watched(stored: Stored, start: int, stop: int) -> Tensor:
        assert sum(each() is not None for each in decoded) <= 1  # the loop may still hold the one before
        values = read(stored, start, stop)
        decoded.append(weakref.ref(values))
        return values

    monkeypatch.setattr(Stored, "read", watched)
    state = engine.local_state()
    assert len(decoded) == 8 and set(state) == {"weights", "exp_avg", "exp_avg_sq"}
    monkeypatch.undo()
    for number, master in enumerate(masters):
        held = optimizer.state[master]["exp_avg"]
        assert torch.equal(state["exp_avg"][f"p{number}@0"], held.read(0, master.numel()))
