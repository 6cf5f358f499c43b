"""The stream: exact, resumable, the same on any ranks and workers, and distributed as in the paper."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from randcond.data.cache.shards import Shard, write_shard
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.data.stream.batch import Batch
from randcond.data.stream.stream import CaptionPool, Positions, Stream, batches
from randcond.launch.config.paths import PACKAGE
from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.tokenizers import Tokenizers
from randcond.model_zoo.families.base.family import Condition
from randcond.train.prefetch import Prefetcher
from randcond.train.step import draw_noise, to_device
from randcond.train.watch.timing import DataStalls
from tests.support.latents import ddpm_times, opened

N, EXTRA = 50, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache")
    random = np.random.default_rng(0)
    captions = [f"a red picture number {number}" for number in range(N)]
    latents = random.standard_normal((N, 4, 8, 8))
    write_captions(out / "captions.arrow", captions)
    write_captions(out / "extra.arrow", (f"extra text {number}" for number in range(EXTRA)))
    samples = [{"caption_id": i, "caption": captions[i], "latent": latents[i], "meta": {"seed": i}} for i in range(N)]
    write_shard(out / "latents-00000.tar", samples)
    return out


def stream(folder: Path, p: str = "exponential", seed: int = 3, count_batch: int = 0, **p_args: float) -> Stream:
    cache = opened(folder)
    pool = CaptionPool(cache.captions, Captions(folder / "extra.arrow"))
    tokenizer = CLIPTokenizer.from_pretrained(PACKAGE / "data" / "digits" / "models" / "teacher" / "tokenizer")
    return Stream(cache, pool, ddpm_times(p, **p_args), 0.1, Tokenizers([tokenizer]), seed, count_batch)


def flat(batch_list: list[Batch]) -> list[tuple[int, ...]]:
    keys = ("key", "timesteps", "noise_seed", "caption_id", "replaced", "null")
    return [tuple(int(getattr(batch, key)[i]) for key in keys) for batch in batch_list for i in range(len(batch))]


@pytest.mark.heavy
def test_one_global_batch_is_the_same_set_on_any_ranks_and_workers(folder: Path) -> None:
    whole = flat(list(batches(stream(folder), Positions(0, 6, 12, 12, 0, 1), workers=0)))
    for ranks, micro, workers in ((2, 3, 0), (4, 3, 0), (1, 4, 2)):
        parts = [
            flat(list(batches(stream(folder), Positions(0, 6, 12, micro, rank, ranks), workers)))
            for rank in range(ranks)
        ]
        per_rank = 12 // ranks
        joined = [
            sample for step in range(6) for part in parts for sample in part[step * per_rank : (step + 1) * per_rank]
        ]
        assert joined == whole


def test_an_epoch_shows_every_latent_once_and_epochs_differ(folder: Path) -> None:
    source = stream(folder)
    first, second = ([source[e * N + i]["key"] for i in range(N)] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second


def test_runs_that_differ_in_p_see_the_same_rest(folder: Path) -> None:
    one, other = stream(folder, "none"), stream(folder, "constant", value=1.0)
    for position in range(200):
        a, b = one[position], other[position]
        assert (a["key"], a["timesteps"], a["noise_seed"], a["null"]) == (
            b["key"],
            b["timesteps"],
            b["noise_seed"],
            b["null"],
        )
        assert not a["replaced"] and b["replaced"]
        assert a["null"] or a["caption_id"] == a["key"]


def test_a_sample_is_what_the_cache_holds(folder: Path) -> None:
    source = stream(folder, "none")
    for position in range(N):
        sample = source[position]
        assert np.array_equal(sample["latents"].numpy(), source.cache.pair(sample["key"])[0])
        assert sample["caption"] == ("" if sample["null"] else f"a red picture number {sample['key']}")


def test_noise_is_each_samples_own() -> None:
    seeds = torch.tensor([5, 2**62, 5])
    noise = draw_noise(seeds, torch.empty(3, 4, 8, 8))
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        assert torch.equal(row, torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)))


def test_null_captions_are_the_encoding_of_nothing(folder: Path) -> None:
    source = stream(folder)
    batch = source.collate([source[position] for position in range(100)])
    nothing = source.tokenizers([""])["token_ids"][0]
    empty = (batch.token_ids["token_ids"] == nothing).all(dim=1)
    assert torch.equal(empty, batch.null) and empty.any()


@pytest.mark.parametrize("name", ["none", "exponential", "mirrored", "linear", "sigmoid", "constant"])
def test_shares_are_the_papers(folder: Path, name: str) -> None:
    """In every bin of timesteps, the share of replaced captions is within 4 sigma of p(t).

    Timesteps and draws from the pool are uniform, and a tenth of the captions are null, within similar limits.
    """
    source = stream(folder, name)
    draws = 30_000
    samples = [source[position] for position in range(draws)]
    timesteps = np.array([s["timesteps"] for s in samples])
    replaced = np.array([s["replaced"] for s in samples])
    for low in range(0, 1000, 100):
        inside = (timesteps >= low) & (timesteps < low + 100)
        p = np.array([source.times.probability(t) for t in range(1000)])[timesteps[inside]]
        sigma = max(np.sqrt((p * (1 - p)).sum()), 1e-9)
        assert abs(replaced[inside].sum() - p.sum()) <= 4 * sigma
        assert abs(inside.sum() - draws / 10) <= 4 * np.sqrt(draws * 0.09)
    null = sum(s["null"] for s in samples)
    assert abs(null - 0.1 * draws) <= 4 * np.sqrt(draws * 0.09)
    others = Counter(s["caption_id"] for s in samples if s["replaced"] and not s["null"])
    if total := sum(others.values()):
        expected = total / (N + EXTRA)
        chi2 = sum((others[i] - expected) ** 2 / expected for i in range(N + EXTRA))
        assert chi2 < 79 + 5 * np.sqrt(2 * 79)  # 79 degrees of freedom


def test_damage_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "latents-00000.tar"
    write_shard(path, [{"caption_id": 4, "caption": "x", "latent": np.full((4, 8, 8), np.nan), "meta": {}}])
    shard = Shard(path)
    with pytest.raises(UserError, match="key 000000004: not a finite fp16 latent"):
        shard.latent(0)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="incomplete or damaged"):
        Shard(path)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        Shard(path)


def test_shards_are_ordinary_webdataset_tars(folder: Path) -> None:
    import webdataset

    found = list(webdataset.WebDataset(str(folder / "latents-00000.tar"), shardshuffle=False).decode())
    assert len(found) == N
    assert found[7]["txt"] == "a red picture number 7"
    assert found[7]["npy"].dtype == np.float16 and found[7]["npy"].shape == (4, 8, 8)
    assert found[7]["json"]["caption_id"] == 7


def test_unreplaced_samples_are_counted_over_the_global_batch(folder: Path) -> None:
    source = stream(folder, p="linear", count_batch=16)
    for ranks in (1, 2):
        for rank in range(ranks):
            for step, batch in enumerate(batches(source, Positions(0, 3, 16, 16 // ranks, rank, ranks), 0)):
                whole = [source[position] for position in range(16 * step, 16 * step + 16)]
                assert batch.unreplaced_in_batch == sum(not sample["replaced"] for sample in whole)


def test_what_is_made_ready_ahead_is_what_the_step_would_make(folder: Path) -> None:
    """Prefetched batches have the same order, noise and content. A second fetch() in a row does nothing."""
    plain = list(batches(stream(folder), Positions(0, 3, 4, 2, 0, 1), 0))
    ahead = Prefetcher(batches(stream(folder), Positions(0, 3, 4, 2, 0, 1), 0), torch.device("cpu"))
    for batch in plain:
        ahead.fetch()
        ahead.fetch()
        ready = ahead.take()
        assert torch.equal(ready.noise, draw_noise(batch.noise_seed, batch.latents))
        assert torch.equal(ready.latents, batch.latents.float())
        assert torch.equal(ready.timesteps, batch.timesteps)
        assert to_device(ready, torch.device("cpu")) is ready
    ahead.fetch()  # after the last batch: no error, so that the last step is finished
    with pytest.raises(StopIteration):
        ahead.take()


def test_captions_are_encoded_ahead_by_what_the_step_would_use(folder: Path) -> None:
    def encode(batch: Batch) -> Condition:
        return {"ids": 2 * batch.token_ids["token_ids"]}

    plain = list(batches(stream(folder), Positions(0, 3, 4, 2, 0, 1), 0))
    loader = batches(stream(folder), Positions(0, 3, 4, 2, 0, 1), 0)
    ahead = Prefetcher(loader, torch.device("cpu"), encode=encode)
    for batch in plain:
        condition = ahead.take().condition
        assert condition is not None and torch.equal(condition["ids"], encode(batch)["ids"])
        ahead.fetch()
    assert batch.condition is None


@pytest.mark.gpu
def test_a_condition_of_another_stream_is_complete_when_it_is_taken(folder: Path) -> None:
    """The memory of a condition is not given to a later one while the step may still read it."""
    device = torch.device("cuda")
    square = torch.randn(4096, 4096, device=device)

    def encode(batch: Batch) -> Condition:
        ids = batch.token_ids["token_ids"].to(device, torch.float32)
        for _ in range(20):
            square @ square  # so that it is late
        return {"ids": 2 * ids}

    def late(value: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            square @ square
        return value + 0

    loader = batches(stream(folder), Positions(0, 8, 4, 2, 0, 1), 0)
    ahead, read = Prefetcher(loader, device, encode=encode), []
    for _ in range(8):
        batch = ahead.take()
        assert batch.condition is not None
        read.append((late(batch.condition["ids"]), encode(batch)["ids"]))
        del batch
        ahead.fetch()
    assert all(torch.equal(ours, theirs) for ours, theirs in read)


def test_what_fails_ahead_is_raised_when_it_is_asked_for(folder: Path) -> None:
    """take() raises the error of fetch(), so that the current step can be finished and saved before."""

    def loader() -> Iterator[Batch]:
        yield next(batches(stream(folder), Positions(0, 1, 4, 4, 0, 1), 0))
        raise UserError("latents-00001.tar: damaged")

    ahead = Prefetcher(loader(), torch.device("cpu"))
    noise = ahead.take().noise
    assert noise is not None and len(noise) == 4
    ahead.fetch()
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"):
            ahead.take()


def test_a_wait_for_data_counts_on_a_cpu_and_ends_with_what_it_waits_for() -> None:
    stalls = DataStalls(torch.device("cpu"))
    with stalls.wait():
        time.sleep(0.02)
    with pytest.raises(UserError, match="damaged"), stalls.wait():
        time.sleep(0.02)
        raise UserError("damaged")
    assert stalls.seconds() >= 0.04
    assert stalls.seconds() == 0


@pytest.mark.gpu
def test_a_wait_behind_queued_work_is_no_loss() -> None:
    """During the first wait the device is busy, so no time is lost. During the second wait it is idle."""
    device = torch.device("cuda")
    stalls, square = DataStalls(device), torch.randn(8192, 8192, device=device)
    square @ square
    torch.cuda.synchronize()
    for _ in range(50):
        square @ square
    with stalls.wait():
        time.sleep(0.02)
    assert stalls.seconds() < 0.005
    torch.cuda.synchronize()
    with stalls.wait():
        time.sleep(0.05)
    assert 0.04 < stalls.seconds() < 0.2
