"""Times the training stream against a dataset with one file per latent (part of `make bench-data`).

The stream reads latents of 4 x 64 x 64 and their captions from shards. The other side does it like the published
loader: `torch.load` of one file per latent, captions in a list. Both tokenize with CLIP's tokenizer. The files are
dropped from the page cache before each measurement.
"""

import ctypes
import gc
import mmap
import os
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from randcond.data.cache.shards import write_shard
from randcond.data.captions.caption_file import write_captions
from randcond.data.stream.stream import CaptionPool, Positions, Stream, batches
from randcond.model_zoo.checkpoints.tokenizers import Tokenizers
from tests.support.latents import ddpm_times, opened
from tests.support.shaped import clip_tokenizer

SHARD, BATCH, WORDS = 1024, 64, 9
WANTED = 150  # samples/s that one H200 trains with B-Tiny, the fastest measured (record/step-b-tiny.json)


def main() -> None:
    """Prints the samples per second of both sides with 0, 1 and 2 workers."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=int, nargs="?", default=20_480)
    count = parser.parse_args().samples
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        captions = write(folder, count)
        files = [*folder.glob("*.tar"), *(folder / "plain").iterdir()]
        tokenizers = Tokenizers([clip_tokenizer()])
        for workers in (0, 1, 2):
            rates = {}
            for side, make in (("ours", ours), ("plain", plain)):
                drop(files)
                cold = resident(files)
                assert cold < 0.01, f"{cold:.0%} of the files' pages are still in memory"
                rates[side] = rate(make(folder, captions, tokenizers, workers))
            print(
                f"{workers} workers   ours {rates['ours']:7,.0f} samples/s   one file per latent {rates['plain']:7,.0f}"
                f"   ratio {rates['ours'] / rates['plain']:.1f}   one H200 needs {WANTED}",
                flush=True,
            )


def write(folder: Path, count: int) -> list[str]:
    """Writes the same latents as shards and as one file each. Returns the captions."""
    random = np.random.default_rng(0)
    words = [line.split() for line in (Path(__file__).parents[2] / "data/digits/captions.txt").read_text().splitlines()]
    vocabulary = sorted({word for line in words for word in line})
    captions = [" ".join(random.choice(vocabulary, WORDS)) for _ in range(count)]
    write_captions(folder / "captions.arrow", captions)
    (folder / "plain").mkdir()
    for first in range(0, count, SHARD):
        latents = random.standard_normal((min(SHARD, count - first), 4, 64, 64)).astype(np.float16)
        samples = [
            {"caption_id": first + row, "caption": captions[first + row], "latent": latent, "meta": {}}
            for row, latent in enumerate(latents)
        ]
        write_shard(folder / f"latents-{first // SHARD:05d}.tar", samples)
        for row, latent in enumerate(latents):
            torch.save(torch.from_numpy(latent.copy()), folder / "plain" / f"{first + row:09d}.pt")
    os.sync()
    return captions


def ours(folder: Path, captions: list[str], tokenizers: Tokenizers, workers: int) -> Iterator[Any]:
    """Returns the batches of the training stream."""
    cache = opened(folder)
    stream = Stream(
        cache,
        CaptionPool(cache.captions, cache.captions),
        ddpm_times(),
        0.1,
        tokenizers,
        0,
    )
    steps = len(cache) // BATCH
    return batches(stream, Positions(0, steps, BATCH, BATCH, 0, 1), workers)


class OneFileEach(Dataset[dict[str, Any]]):
    """A dataset with one file per latent, as the published loader reads it."""

    def __init__(self, folder: Path, captions: list[str], tokenizers: Tokenizers) -> None:
        self.files = sorted((folder / "plain").iterdir())
        self.captions, self.tokenizers = captions, tokenizers

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        latent = torch.load(self.files[index], weights_only=True)  # files that `write` made
        return {"latents": latent.float(), **{k: v[0] for k, v in self.tokenizers([self.captions[index]]).items()}}


def plain(folder: Path, captions: list[str], tokenizers: Tokenizers, workers: int) -> Iterator[Any]:
    """Returns shuffled batches of OneFileEach. Captions are tokenized one at a time."""
    dataset = OneFileEach(folder, captions, tokenizers)
    return iter(DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True))


def drop(files: list[Path]) -> None:
    """Asks the kernel to drop the files from the page cache."""
    gc.collect()
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def resident(files: list[Path]) -> float:
    """Returns the share of the files' pages that are in memory, as mincore reports it."""
    libc = ctypes.CDLL(None, use_errno=True)
    held = pages = 0
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
            flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
            start = ctypes.c_char.from_buffer(mapped)
            if libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), flags):
                raise OSError(ctypes.get_errno(), "mincore")
            del start
            held += sum(flag & 1 for flag in flags)
            pages += len(flags)
    return held / pages


def rate(loader: Iterator[Any]) -> float:
    """Returns samples per second from the first batch to the last, without the start and end of the workers."""
    next(loader)
    began = last = time.perf_counter()
    seen = 0
    for batch in loader:
        seen += len(batch)
        last = time.perf_counter()
    return seen / (last - began)


if __name__ == "__main__":
    main()
