"""Trains three steps on several ranks, and prints the memory and the traffic of rank 0 as JSON.

`torchrun --nproc-per-node 2 -m tests.support.footprint EXPERIMENT [section.key=value ...]`
"resident": bytes of the tensors that are alive after a backward pass (the largest value), without those that existed
before the student was built. Each storage counts once. EMA weights in the host's memory don't count.
"peak": bytes of the tensors that are alive at the same time in a step, also without those.
"sent": bytes that the collectives of one step send in rings.
"""

import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from randcond.data.stream.batch import Batch
from randcond.launch.config.engines import batch_shape
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.model_zoo.cost.live_bytes import LiveBytes
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step
from randcond.train.engine import build_engine
from randcond.train.engine.ema import HostEma


def alive() -> int:
    """Returns the bytes of all tensors' storages, including gradients."""
    storages: dict[int, int] = {}
    for tensor in tensors_alive():
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def tensors_alive() -> Iterator[Tensor]:
    """Yields all tensors, including gradients, and the local parts of distributed ones."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (Tensor, torch.nn.Parameter, DTensor)]
    for tensor in [*tensors, *(t.grad for t in tensors if t.is_leaf and t.grad is not None)]:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.device.type != "meta":
            yield local


TIMES = {
    "allreduce_": 2,
    "broadcast_": 1,
    "_allgather_base_": 1,
    "_reduce_scatter_base_": 1,
}  # collective -> how often a ring of N ranks sends (N - 1) / N of the tensor


class Sent(TorchDispatchMode):
    """A context that adds up the bytes that one rank sends in collectives."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks, self.bytes = ranks, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            size = max(tensor.numel() * tensor.element_size() for tensor in tensors)
            times = TIMES[func.overloadpacket.__name__]
            self.bytes += times * size * (self.ranks - 1) / self.ranks
        return func(*args, **(kwargs or {}))


def main() -> None:
    config = load_config(sys.argv[1], sys.argv[2:])
    torch.set_num_threads(1)
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype)
    before = alive()
    module, distil = build_step(config, teacher)
    engine = build_engine(config, module)
    micro, accumulation = batch_shape(config.train.global_batch, engine.ranks, config.engine.micro_batch)
    shape = (micro, *teacher.latent_shape)
    off = torch.zeros(micro, dtype=torch.bool)
    batch = Batch(
        latents=torch.randn(shape),
        token_ids=teacher.tokenizers(["a red two"] * micro),
        key=torch.arange(micro),
        caption_id=torch.arange(micro),
        timesteps=torch.randint(teacher.timesteps, (micro,)),
        noise_seed=torch.arange(micro),
        replaced=off,
        null=off,
        unreplaced_in_batch=config.train.global_batch,
    )
    on_host = [*engine.ema.average, engine.ema.copied] if isinstance(engine.ema, HostEma) else []
    largest = peak = 0
    for _ in range(3):
        resting = alive() - before
        with LiveBytes(tensors_alive()) as live, Sent(engine.ranks) as sent:
            for _ in range(accumulation):
                losses = distil(engine.forward, batch, engine.dtype)
                engine.backward(losses.total)
                del losses
                largest = max(largest, alive() - before - sum(tensor.nbytes for tensor in on_host))
                engine.step(1e-4, 0.9)
        peak = max(peak, resting + live.peak)
    if engine.rank == 0:
        print(json.dumps({"resident": largest, "peak": peak, "sent": sent.bytes}), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
