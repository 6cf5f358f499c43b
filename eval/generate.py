"""Draws the evaluation's images by per-caption seeds, judged in the same pass, resumable by chunk.

In: a caption list and a network (the teacher's U-Net or an exported student's). Out: OUT/chunk-*.safetensors holding
images, the judge's reading of each, and its features. Chunks are fixed by caption number, so ranks and restarts agree.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from randcond.data.captions import names_any, read_unique
from randcond.data.digits.judge import EMBEDDED_JUDGE, Judge
from randcond.data.files import check_same, read_json, write_json, written_whole
from randcond.data.lock import claim_each
from randcond.data.ranks import cpu_threads, rank
from randcond.launch.config import Config, resolve_sources
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents
from randcond.model_zoo.teacher import folder_fingerprint


@dataclass(frozen=True)
class Prompts:
    """The evaluation's captions by number; those of the split "unseen" name a word without images."""

    captions: list[str]
    splits: dict[str, range]


def choose_prompts(config: Config) -> Prompts:
    """`eval.size` seen captions and, where words were excluded from the cache, as many unseen, in a seeded order.

    Raises ValueError when the sources hold fewer.
    """
    captions, _ = read_unique(resolve_sources(config.eval.captions))
    excluded = names_any(config.cache.exclude)
    parts = {
        "seen": [caption for caption in captions if not excluded.search(caption)],
        "unseen": [caption for caption in captions if excluded.search(caption)],
    }
    chosen: list[str] = []
    splits = {}
    for split, part in parts.items():
        if split == "unseen" and not config.cache.exclude:
            continue
        if len(part) < config.eval.size:
            raise ValueError(f"eval.size: {config.eval.size} {split} captions wanted, the sources hold {len(part)}")
        order = np.random.default_rng(config.eval.seed).permutation(len(part))[: config.eval.size]
        splits[split] = range(len(chosen), len(chosen) + config.eval.size)
        chosen += [part[index] for index in order]
    return Prompts(chosen, splits)


def protocol(config: Config, network: str) -> dict[str, Any]:
    """Everything a score depends on, printed beside it; `network` is the fingerprint of what drew."""
    ev, prompts = config.eval, choose_prompts(config)
    return {
        "network": network,
        "judge": folder_fingerprint(EMBEDDED_JUDGE),
        "prompts_sha256": sha256("\n".join(prompts.captions).encode()).hexdigest()[:16],
        "splits": {split: len(ids) for split, ids in prompts.splits.items()},
        "sampler": ev.sampler,
        "steps": ev.steps,
        "guidance": ev.guidance,
        "seed": ev.seed,
        "batch": ev.batch,
        "dtype": config.teacher.dtype,
        "threads": cpu_threads(),
    }


def chunk_paths(out: Path, count: int, batch: int) -> list[Path]:
    """One file per compute batch, in order."""
    return [out / f"chunk-{number:05d}.safetensors" for number in range(-(-count // batch))]


def generate(
    config: Config,
    pipe: DiffusionPipeline,
    prompts: Prompts,
    judge: Judge,
    out: Path,
    made_of: dict[str, Any],
    what: str,
) -> None:
    """Draws the missing chunks this rank can claim; returns when all ranks' chunks are in place.

    Raises ValueError when `out` holds images made otherwise.
    """
    batch = config.eval.batch
    if (out / "plan.json").is_file():
        check_same(read_json(out / "plan.json"), made_of, f"the evaluation at {out}", "Remove it and evaluate again.")
    else:
        write_json(out / "plan.json", made_of)
    chunks = chunk_paths(out, len(prompts.captions), batch)
    done = sum(map(Path.is_file, chunks))
    silent = rank() != 0 or done == len(chunks)
    bar = tqdm(total=len(chunks), initial=done, desc=what, unit="batch", mininterval=2, disable=silent)
    for number in claim_each(chunks, Path.is_file):
        ids = range(number * batch, min((number + 1) * batch, len(prompts.captions)))
        seeds = [caption_seed(config.eval.seed, caption_id) for caption_id in ids]
        texts = [prompts.captions[caption_id] for caption_id in ids]
        latents = draw_latents(pipe, texts, seeds, config.eval.steps, config.eval.guidance, batch)
        images = to_bytes(decode(pipe, latents)).cpu()
        read, features = judge.classify(from_bytes(images))
        with written_whole(chunks[number]) as aside:
            save_file({"images": images, "read": read, "features": features}, aside)
        bar.update(sum(map(Path.is_file, chunks)) - bar.n)  # every rank's chunks count
    bar.close()


def load_chunks(out: Path, count: int, batch: int) -> dict[str, Tensor]:
    """All chunks of an evaluation joined: images uint8 [n, 3, H, W], read [n, 3], features [n, 64]."""
    parts = [load_file(chunk) for chunk in chunk_paths(out, count, batch)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, as an image file would hold them."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()


def from_bytes(images: Tensor) -> Tensor:
    """uint8 images -> [-1, 1]."""
    return images.float() / 127.5 - 1
