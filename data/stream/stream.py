"""The training stream. Each sample is a pure function of the seed and its global position.

So the samples do not depend on the number of ranks or loader processes, and a resumed run sees the same samples.

In: a latent cache, the extra texts, p(t). Out: micro-batches (`Batch`).
"""

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.captions.caption_file import Captions
from randcond.data.stream.batch import Batch
from randcond.data.stream.conditioning import Times
from randcond.model_zoo.checkpoints.tokenizers import Tokenizers

NUMBERS = ("key", "caption_id", "noise_seed", "replaced", "null")  # integers stored for each sample


class CaptionPool:
    """The caption pool: the N cached captions, followed by the extra texts."""

    def __init__(self, cached: Captions, extra: Captions) -> None:
        self.cached, self.extra = cached, extra

    def __len__(self) -> int:
        return len(self.cached) + len(self.extra)

    def __getitem__(self, index: int) -> str:
        return self.cached[index] if index < len(self.cached) else self.extra[index - len(self.cached)]


class Draw(NamedTuple):
    """The random decisions for one sample."""

    timestep: float  # an integer in 0 .. T-1, or of a flow a real number in (0, T]
    replaced: bool  # random conditioning replaces the caption
    other: int  # number of the caption in the pool that replaces it
    null: bool  # the null caption is used instead, replaced or not
    noise_seed: int


class _Chance:
    """Gives a random generator for each position: Philox with the key (seed, position).

    Resets the state of a single generator, which is faster than making a new one.
    """

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=(seed, 0))
        self._initial_state: Any = self._philox.state
        self._random = np.random.Generator(self._philox)

    def at(self, position: int) -> np.random.Generator:
        self._initial_state["state"]["key"][1] = position
        self._philox.state = self._initial_state
        return self._random


class Failed(NamedTuple):
    """An exception that a sample raised in a loader process, returned as a value.

    torch would wrap a raised exception. As a value it keeps its class, its errno and its one-line message.
    """

    error: Exception


def _survives_copying(error: Exception) -> bool:
    """Returns True if an exception can be passed to another process. Some can't be rebuilt from their arguments."""
    try:
        return type(copy.copy(error)) is type(error)
    except Exception:
        return False


class Stream(Dataset[Any]):
    """Training samples by global position (0, 1, 2, ... over the whole run). An epoch is one pass over the cache."""

    def __init__(
        self,
        cache: LatentCache,
        pool: CaptionPool,
        times: Times,
        null: float,
        tokenizers: Tokenizers,
        seed: int,
        count_batch: int = 0,
    ) -> None:
        """`times`: draws timesteps and gives p(t). `null`: share of null captions, in [0, 1].

        `count_batch`: size of the global batch, to count its unreplaced samples for the task loss; 0: don't count.
        """
        self.cache, self.pool, self.tokenizers = cache, pool, tokenizers
        self.times, self.null, self.seed, self.count_batch = times, null, seed, count_batch
        self._chance = _Chance(seed)
        self._order = lru_cache(maxsize=2)(self._permutation)
        self._unreplaced = lru_cache(maxsize=2)(self._count_unreplaced)

    def __reduce__(self) -> Any:
        fields = (self.cache, self.pool, self.times, self.null, self.tokenizers, self.seed, self.count_batch)
        return Stream, fields

    def _permutation(self, epoch: int) -> np.ndarray:
        return self.cache.order(np.random.default_rng((self.seed, 0, epoch)))

    def draw(self, position: int) -> Draw:
        """Returns the random decisions for the sample at a global position."""
        # Draws every number even if it is not used, so that runs with another p(t) are otherwise identical.
        random = self._chance.at(position)
        timestep = self.times.draw(random)
        return Draw(
            timestep=timestep,
            replaced=bool(random.random() < self.times.probability(timestep)),
            other=int(random.integers(len(self.pool))),
            null=bool(random.random() < self.null),
            noise_seed=int(random.integers(2**63)),
        )

    def _count_unreplaced(self, step: int) -> int:
        positions = range(step * self.count_batch, (step + 1) * self.count_batch)
        return sum(not self.draw(position).replaced for position in positions)

    def read_ahead(self, positions: list[int]) -> None:
        """Asks the operating system to read the latents of these samples from disk in the background."""
        self.cache.read_ahead(map(self._index, positions))

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.cache))
        return int(self._order(epoch)[place])

    def __getitem__(self, position: int) -> "dict[str, Any] | Failed":
        """Returns the sample at a global position. In a loader process, an exception is returned as `Failed`."""
        if torch.utils.data.get_worker_info() is None:
            return self.sample(position)
        try:
            return self.sample(position)
        except Exception as error:
            error.add_note(traceback.format_exc())  # passing an exception to another process drops its traceback
            return Failed(error if _survives_copying(error) else RuntimeError(f"{type(error).__name__}: {error}"))

    def sample(self, position: int) -> dict[str, Any]:
        """Returns the sample at a global position: its latent, fp16 [C, h, w], its caption, its random decisions."""
        index = self._index(position)
        if self.cache.prefetch_distance:
            self.cache.prefetch(self._index(position + self.cache.prefetch_distance))
        draw = self.draw(position)
        latent, own_caption_id = self.cache.pair(index)
        caption_id = draw.other if draw.replaced else own_caption_id
        return {
            "key": own_caption_id,
            "latents": torch.from_numpy(latent),
            "caption": "" if draw.null else self.pool[caption_id],
            "caption_id": -1 if draw.null else caption_id,
            "timesteps": draw.timestep,
            "noise_seed": draw.noise_seed,
            "replaced": draw.replaced,
            "null": draw.null,
            "unreplaced_in_batch": self._unreplaced(position // self.count_batch) if self.count_batch else 0,
        }

    def pack(self, samples: "Sequence[dict[str, Any] | Failed]") -> "dict[str, Any] | Failed":
        """Tokenizes the captions and packs B samples into as few tensors as possible. `unpack` reverses this.

        Passing a tensor from a loader process costs a tenth of a millisecond on both sides. Returns a dictionary with
        latents [B, C, h, w], token_ids [B, L] per text encoder, timesteps [B], and numbers int64 [len(NUMBERS), B]. If
        a sample failed, returns its `Failed` instead.
        """
        valid = [sample for sample in samples if not isinstance(sample, Failed)]
        if len(valid) < len(samples):
            return next(sample for sample in samples if isinstance(sample, Failed))
        return {
            "latents": torch.utils.data.default_collate([sample["latents"] for sample in valid]),
            "token_ids": self.tokenizers([sample["caption"] for sample in valid]),
            "numbers": torch.tensor([[sample[name] for sample in valid] for name in NUMBERS]),
            "timesteps": torch.tensor([sample["timesteps"] for sample in valid]),  # integers, or fp32
            # Equal for all samples, because a micro-batch belongs to one global batch.
            "unreplaced_in_batch": valid[0]["unreplaced_in_batch"],
        }

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Returns the micro-batch of some samples."""
        return unpack(self.pack(samples))


def unpack(packed: dict[str, Any] | Failed) -> Batch:
    """Returns the micro-batch that `Stream.pack` packed. Raises the exception of a sample that failed."""
    if isinstance(packed, Failed):
        raise packed.error
    numbers = dict(zip(NUMBERS, packed.pop("numbers"), strict=True))
    flags = {name: numbers.pop(name).bool() for name in ("replaced", "null")}
    return Batch(**packed, **numbers, **flags)


class Positions(Sampler[list[int]]):
    """The global positions of one rank's micro-batches. A global batch consists of consecutive positions."""

    def __init__(
        self, first_step: int, last_step: int, global_batch: int, micro_batch: int, rank: int, ranks: int
    ) -> None:
        """For the steps first_step .. last_step - 1. `ranks`: the world size."""
        self.steps = range(first_step, last_step)
        self.global_batch, self.micro_batch, self.rank, self.ranks = global_batch, micro_batch, rank, ranks

    def __len__(self) -> int:
        return len(self.steps) * self.global_batch // (self.ranks * self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        per_rank = self.global_batch // self.ranks
        for step in self.steps:
            first = step * self.global_batch + self.rank * per_rank
            for start in range(first, first + per_rank, self.micro_batch):
                yield list(range(start, start + self.micro_batch))


class _ReadAhead(Sampler[list[int]]):
    """Yields the micro-batches of `positions`, and starts to read the latents of each one from disk.

    The DataLoader takes micro-batches from here before a worker needs them, so the disk reads overlap with its work.
    """

    def __init__(self, stream: Stream, positions: Positions) -> None:
        self.stream, self.positions = stream, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[list[int]]:
        for micro_batch in self.positions:
            self.stream.read_ahead(micro_batch)
            yield micro_batch


def batches(
    stream: Stream, positions: Positions, workers: int, on_worker_start: Callable[[int], None] | None = None
) -> Iterator[Batch]:
    """Returns an iterator over micro-batches in the order of `positions`.

    `workers`: number of loader processes; the order does not depend on it. `on_worker_start`: called in each loader
    process with its number when it starts.
    """
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_sampler=_ReadAhead(stream, positions) if workers else positions,
        collate_fn=stream.pack,
        num_workers=workers,
        worker_init_fn=on_worker_start,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        multiprocessing_context="spawn" if workers else None,
    )
    return map(unpack, loader)
