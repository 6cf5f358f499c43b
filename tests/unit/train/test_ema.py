"""The EMA of the weights: in the host's memory it has the same bits as on the device."""

import pytest
import torch
from torch import Tensor

from randcond.train.engine import ema
from randcond.train.engine.ema import Ema, HostEma, build_ema, joined

SIZES = [100_003, 1, 64, 7, 4096]


def walk(held: Ema, weights: list[Tensor], steps: int = 20) -> list[Tensor]:
    """Moves the weights at random and averages them, as a training does. Returns the averages."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        held.finish()
        for each in weights:
            each.add_(torch.randn(each.shape, generator=generator))
        held.update(min(0.99, (1 + step) / (10 + step)))
    held.finish()
    return held.average


@pytest.mark.parametrize("chunk", [1 << 24, 4096])
def test_the_host_has_the_same_bits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ema, "CHUNK", chunk)
    averages = []
    for where in ("device", "cpu"):
        weights = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in SIZES]
        held = build_ema(where, weights)
        assert held is not None and type(held) is {"device": Ema, "cpu": HostEma}[where]
        averages.append([each.clone() for each in walk(held, weights)])
        held.close()
    assert all(torch.equal(one, other) for one, other in zip(*averages, strict=True))


@pytest.mark.parametrize("where", ["device", "cpu"])
def test_views_of_one_tensor_are_averaged_together(where: str) -> None:
    """The averages of views of one tensor have the bits of those of separate tensors. A gap ends what is joined."""
    flat = torch.randn(sum(SIZES) + 5, generator=torch.Generator().manual_seed(0))
    views = list(flat[: sum(SIZES)].split(SIZES))
    apart = [*views[:2], *flat[5:].split(SIZES)[2:]]  # the first two, a gap of 5, the others
    assert [len(sizes) for sizes in joined(views)[1]] == [5]
    assert [len(sizes) for sizes in joined(apart)[1]] == [2, 3]
    assert [len(sizes) for sizes in joined(views[::-1])[1]] == [1] * 5
    averages = []
    for weights in (apart, [each.clone() for each in apart]):
        held = build_ema(where, weights)
        assert held is not None and len(held.averages) == (2 if weights is apart else 5)
        averages.append([each.clone() for each in walk(held, weights)])
        held.close()
    assert [each.shape for each in averages[0]] == [each.shape for each in apart]
    assert all(torch.equal(one, other) for one, other in zip(*averages, strict=True))


def test_off_is_none() -> None:
    assert build_ema("off", [torch.zeros(3)]) is None


def test_an_error_of_the_thread_is_raised() -> None:
    held = HostEma([torch.zeros(3)])
    held.averages = [torch.zeros(2)]  # too short
    held.update(0.9)
    with pytest.raises(RuntimeError, match="size of tensor"):
        held.finish()
    held.close()


@pytest.mark.gpu
def test_the_host_has_the_devices_values_to_a_rounding() -> None:
    averages = []
    for where in ("device", "cpu"):
        weights = [torch.randn(size, generator=torch.Generator().manual_seed(size)).cuda() for size in SIZES]
        generator, held = torch.Generator("cuda").manual_seed(1), build_ema(where, weights)
        assert held is not None
        for step in range(50):
            held.finish()
            for each in weights:
                each.add_(torch.randn(each.shape, generator=generator, device="cuda"))
            held.update(min(0.99, (1 + step) / (10 + step)))
        held.finish()
        averages.append([each.cpu() for each in held.average])
    for one, other in zip(*averages, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_thread_is_on_the_gpu_of_its_weights() -> None:
    held = HostEma([torch.zeros(3, device="cuda:1")])
    assert held._thread.submit(torch.cuda.current_device).result() == 1
    held.close()
