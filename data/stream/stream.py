"""The training stream: every sample a pure function of (seed, global position), so any rank, worker or restart agrees.

In: a latent cache, the extra texts, p(t). Out: batches {key, latents (fp16), token_ids (token_ids_2), timesteps,
noise_seed, replaced, null, caption_id, unreplaced_in_batch}.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.captions.caption_file import Captions
from randcond.model_zoo.tokenizers import Tokenizers

NUMBERS = ("key", "caption_id", "timesteps", "noise_seed", "replaced", "null")  # of a sample


class CaptionPool:
    """The M captions a latent may be shown with: the N cached ones, then the extra texts."""

    def __init__(self, cached: Captions, extra: Captions) -> None:
        self.cached, self.extra = cached, extra

    def __len__(self) -> int:
        return len(self.cached) + len(self.extra)

    def __getitem__(self, index: int) -> str:
        return self.cached[index] if index < len(self.cached) else self.extra[index - len(self.cached)]


class Draw(NamedTuple):
    """What chance decides about one sample."""

    timestep: int
    replaced: bool
    other: int  # the caption it is shown with if replaced
    null: bool
    noise_seed: int


class _Chance:
    """A random generator for each position: Philox keyed by (seed, position), set anew instead of made anew."""

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=(seed, 0))
        self._fresh: Any = self._philox.state
        self._random = np.random.Generator(self._philox)

    def at(self, position: int) -> np.random.Generator:
        self._fresh["state"]["key"][1] = position
        self._philox.state = self._fresh
        return self._random


class Failed(NamedTuple):
    """What a sample raised in a loader process.

    As a value, an exception keeps its class, its errno and its one line; torch would wrap it into another text.
    """

    error: Exception


class Stream(Dataset[Any]):
    """Samples by global position (0, 1, 2, ... over the whole run); an epoch is one pass over the cache."""

    def __init__(
        self,
        cache: LatentCache,
        pool: CaptionPool,
        probability: list[float],  # p(t) for t = 0 .. T-1
        null: float,
        tokenizers: Tokenizers,
        seed: int,
        count_batch: int = 0,  # the global batch whose unreplaced samples are counted (task loss); 0: not counted
    ) -> None:
        self.cache, self.pool, self.tokenizers = cache, pool, tokenizers
        self.probability, self.null, self.seed, self.count_batch = probability, null, seed, count_batch
        self._chance = _Chance(seed)
        self._order = lru_cache(maxsize=2)(self._permutation)
        self._unreplaced = lru_cache(maxsize=2)(self._count_unreplaced)

    def __reduce__(self) -> Any:
        fields = (self.cache, self.pool, self.probability, self.null, self.tokenizers, self.seed, self.count_batch)
        return Stream, fields

    def _permutation(self, epoch: int) -> np.ndarray:
        return self.cache.order(np.random.default_rng((self.seed, 0, epoch)))

    def draw(self, position: int) -> Draw:
        """What chance decides about the sample at a global position."""
        # Every number is drawn whether it is used or not: runs that differ in p(t) alone see the same rest.
        random = self._chance.at(position)
        timestep = int(random.integers(len(self.probability)))
        return Draw(
            timestep=timestep,
            replaced=bool(random.random() < self.probability[timestep]),
            other=int(random.integers(len(self.pool))),
            null=bool(random.random() < self.null),
            noise_seed=int(random.integers(2**63)),
        )

    def _count_unreplaced(self, step: int) -> int:
        positions = range(step * self.count_batch, (step + 1) * self.count_batch)
        return sum(not self.draw(position).replaced for position in positions)

    def read_ahead(self, positions: list[int]) -> None:
        """Has the system read some samples' latents from the disk meanwhile."""
        self.cache.read_ahead(map(self._index, positions))

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.cache))
        return int(self._order(epoch)[place])

    def __getitem__(self, position: int) -> "dict[str, Any] | Failed":
        """The sample at a global position; in a loader process an error comes back as a value."""
        if torch.utils.data.get_worker_info() is None:
            return self.sample(position)
        try:
            return self.sample(position)
        except Exception as error:
            error.add_note(traceback.format_exc())  # an exception loses its traceback between processes
            return Failed(error)

    def sample(self, position: int) -> dict[str, Any]:
        """The sample at a global position: its latent [C, h, w], its caption, and what chance decided about it."""
        index = self._index(position)
        if self.cache.ahead:
            self.cache.expect(self._index(position + self.cache.ahead))
        draw = self.draw(position)
        values, own = self.cache.pair(index)
        caption_id = draw.other if draw.replaced else own
        return {
            "key": own,
            "latents": torch.from_numpy(values),
            "caption": "" if draw.null else self.pool[caption_id],
            "caption_id": -1 if draw.null else caption_id,
            "timesteps": draw.timestep,
            "noise_seed": draw.noise_seed,
            "replaced": draw.replaced,
            "null": draw.null,
            "unreplaced_in_batch": self._unreplaced(position // self.count_batch) if self.count_batch else 0,
        }

    def pack(self, samples: "Sequence[dict[str, Any] | Failed]") -> "dict[str, Any] | Failed":
        """Samples in as few tensors as can be: each costs a loader process, and who reads from it, a tenth of a ms.

        Captions are tokenized: token_ids [B, L] per text encoder. A sample that failed is returned in place of all.
        """
        sound = [sample for sample in samples if not isinstance(sample, Failed)]
        if len(sound) < len(samples):
            return next(sample for sample in samples if isinstance(sample, Failed))
        return {
            "latents": torch.utils.data.default_collate([sample["latents"] for sample in sound]),
            **self.tokenizers([sample["caption"] for sample in sound]),
            "numbers": torch.tensor([[sample[name] for sample in sound] for name in NUMBERS]),
            "unreplaced_in_batch": sound[0]["unreplaced_in_batch"],  # one number: a step is one global batch
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of samples."""
        return unpack(self.pack(samples))


def unpack(packed: dict[str, Any] | Failed) -> dict[str, Any]:
    """The batch that `Stream.pack` packed; raises the error of a sample that failed in a loader process."""
    if isinstance(packed, Failed):
        raise packed.error
    numbers = dict(zip(NUMBERS, packed.pop("numbers"), strict=True))
    flags = {name: numbers.pop(name).bool() for name in ("replaced", "null")}
    return {**packed, **numbers, **flags}


class Positions(Sampler[list[int]]):
    """Global positions of one rank's micro-batches from `first_step` on; one global batch is a run of positions."""

    def __init__(
        self, first_step: int, last_step: int, global_batch: int, micro_batch: int, rank: int, ranks: int
    ) -> None:
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
    """The same micro-batches; what a worker will be asked for next comes from the disk while it does the one before."""

    def __init__(self, stream: Stream, positions: Positions) -> None:
        self.stream, self.positions = stream, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[list[int]]:
        for each in self.positions:
            self.stream.read_ahead(each)
            yield each


def batches(
    stream: Stream, positions: Positions, workers: int, begin: Callable[[int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Micro-batches in the order of the positions, whatever the number of loader processes.

    `begin`: called by each loader process when it starts.
    """
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_sampler=_ReadAhead(stream, positions) if workers else positions,
        collate_fn=stream.pack,
        num_workers=workers,
        worker_init_fn=begin,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        multiprocessing_context="spawn" if workers else None,
    )
    return map(unpack, loader)
