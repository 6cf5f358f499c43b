"""The stream: probabilities over a million samples, epochs on any ranks, and the order after stops."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from transformers import CLIPTokenizer

from randcond.data.cache.shards import write_shard
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.data.stream.stream import CaptionPool, Positions, Stream, batches
from randcond.launch.config.paths import PACKAGE
from randcond.model_zoo.checkpoints.tokenizers import Tokenizers
from tests.support.latents import ddpm_times, opened

DRAWS = 1_000_000
N, EXTRA, SHARD = 960, 9040, 64
VARIANTS = {
    "none": ("none", {}),
    "exponential": ("exponential", {}),
    "mirrored": ("mirrored", {}),
    "linear": ("linear", {}),
    "sigmoid": ("sigmoid", {}),
    "constant 0.5": ("constant", {"value": 0.5}),
    "constant 1.0": ("constant", {"value": 1.0}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache")
    write_captions(out / "captions.arrow", (f"picture {number}" for number in range(N)))
    write_captions(out / "extra.arrow", (f"text {number}" for number in range(EXTRA)))
    latents = np.random.default_rng(0).standard_normal((N, 4, 2, 2))
    for first in range(0, N, SHARD):
        ids = range(first, first + SHARD)
        samples = [{"caption_id": i, "caption": f"picture {i}", "latent": latents[i], "meta": {}} for i in ids]
        write_shard(out / f"latents-{first // SHARD:05d}.tar", samples)
    return out


def stream(folder: Path, variant: str = "exponential", window: int | None = None) -> Stream:
    """Returns a stream. `window`: number of shards whose latents are mixed, as for a large remote cache."""
    name, p_args = VARIANTS[variant]
    cache = opened(folder)
    cache.window = window
    pool = CaptionPool(cache.captions, Captions(folder / "extra.arrow"))
    tokenizer = CLIPTokenizer.from_pretrained(PACKAGE / "data" / "digits" / "models" / "teacher" / "tokenizer")
    return Stream(cache, pool, ddpm_times(name, **p_args), 0.1, Tokenizers([tokenizer]), seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_million_draws_are_what_the_paper_says(
    folder: Path, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By chance, about 3 of 1,000 timesteps are more than 3 sigma from p(t). Not significantly more of them are."""
    source = stream(folder, variant)
    counts = np.zeros((2, 1000))  # all samples, and those with a replaced caption, by timestep
    others = np.zeros(N + EXTRA)
    nulls = 0
    for position in range(DRAWS):
        draw = source.draw(position)
        counts[0, draw.timestep] += 1
        counts[1, draw.timestep] += draw.replaced
        others[draw.other] += 1
        nulls += draw.null
    p = np.array([source.times.probability(t) for t in range(1000)])
    sigma = np.sqrt(counts[0] * p * (1 - p))
    away = np.abs(counts[1] - counts[0] * p)
    never = sigma == 0
    assert (away[never] == 0).all()
    z = away[~never] / sigma[~never]
    beyond = int((z > 3).sum())
    # Small counts are not normally distributed. The binomial distribution gives their probability.
    chance = np.minimum(stats.binom.cdf(counts[1], counts[0], p), stats.binom.sf(counts[1] - 1, counts[0], p))[~never]
    total = abs(counts[1].sum() - (counts[0] * p).sum()) / max(np.sqrt((sigma**2).sum()), 1e-9)
    uniform = stats.chisquare(counts[0]).pvalue
    captions = stats.chisquare(others).pvalue
    null = abs(nulls - 0.1 * DRAWS) / math.sqrt(0.09 * DRAWS)
    with capsys.disabled():
        print(
            f"\n{variant}: {1 - beyond / max(len(z), 1):.2%} of {len(z)} timesteps within 3 sigma of p(t), largest "
            f"{max(z, default=0):.2f}, all together {total:.2f}; null share {nulls / DRAWS:.4f} ({null:.2f} sigma); "
            f"timesteps uniform p = {uniform:.2f}, captions p = {captions:.2f}",
            end=" ",
        )
    assert total < 3 and null < 3 and uniform > 1e-3 and captions > 1e-3
    assert beyond <= stats.binom.ppf(0.9999, max(len(z), 1), 0.0027 if variant != "exponential" else 0.01)
    assert (chance > 1e-7).all()


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_epoch_shows_every_latent_once_on_any_ranks_and_workers(
    folder: Path, ranks: int, workers: int, window: int | None
) -> None:
    keys = [
        int(key)
        for rank in range(ranks)
        for batch in batches(stream(folder, window=window), Positions(0, N // 48, 48, 12, rank, ranks), workers)
        for key in batch.key
    ]
    assert sorted(keys) == list(range(N))


def replay(source: Stream, first: int, last: int, ranks: int) -> list[tuple[int, int, int]]:
    """Returns (key, timestep, caption) of steps first to last - 1 on all ranks, in the order of the global batch."""
    share = 48 // ranks
    parts = [list(batches(source, Positions(first, last, 48, share, rank, ranks), 0)) for rank in range(ranks)]
    return [
        (int(part[step].key[row]), int(part[step].timesteps[row]), int(part[step].caption_id[row]))
        for step in range(last - first)
        for part in parts
        for row in range(share)
    ]


@pytest.mark.parametrize("window", [None, 3])
def test_the_sequence_is_the_same_wherever_it_is_stopped_and_on_how_many_ranks_it_goes_on(
    folder: Path, window: int | None
) -> None:
    """The stream stops at 20 random steps of two epochs. After each stop, a random number of ranks continues."""
    steps = 40
    whole = replay(stream(folder, window=window), 0, steps, 1)
    dice = random.Random(0)
    stops = sorted(dice.sample(range(1, steps), 20))
    seen: list[tuple[int, int, int]] = []
    for first, last in zip([0, *stops], [*stops, steps], strict=True):
        seen += replay(stream(folder, window=window), first, last, dice.choice([1, 2, 3, 4]))  # a new stream each time
    assert seen == whole
