"""What a latent cache holds: latents that the teacher draws for captions, or real images through its VAE.

Both give a latent for each number, a function of (teacher, number, seed, compute batch) alone.
"""

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from randcond.data.cache.captioned_images import Picture, find_pictures, read_picture, to_square
from randcond.data.captions.caption_lists import names_any, read_unique
from randcond.launch.config.paths import resolve_path, resolve_sources
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.model_zoo.kernels.compilation import compile_drawing
from randcond.model_zoo.sampler import caption_seed, draw_latents, encode
from randcond.model_zoo.teacher import Teacher

Sample = dict[str, Any]


class LatentSource(Protocol):
    """The captions of a cache, and how their latents come about."""

    captions: list[str]
    facts: dict[str, Any]  # for the cache's plan

    def begin(self, teacher: Teacher) -> None:
        """Makes ready for `latents`."""

    def latents(self, ids: range) -> tuple[Tensor, list[dict[str, Any]], dict[int, str]]:
        """Latents [n, C, h, w] and metadata of the numbers that gave one, in order; the others with their errors."""


def latent_source(config: Config) -> LatentSource:
    """What the experiment's `cache:` section asks for; raises UserError when its sources don't give that many."""
    return ImageLatents(config) if config.cache.images else TeacherLatents(config)


def cache_identity(config: Config) -> dict[str, Any]:
    """What of an experiment decides its cache's latents, beside teacher and captions."""
    cache = config.cache
    names = [PurePosixPath(source).name for source in cache.captions]  # the cache stage looks into them
    asked = {"seed": cache.seed, "exclude": cache.exclude, "sources": names}
    if cache.images:
        return {"source": "images", "resolution": cache.resolution, **asked}
    drawn = {"sampler": cache.sampler, "steps": cache.steps, "guidance": cache.guidance}
    return {"source": "teacher", **drawn, **asked}


class TeacherLatents:
    """Latents that the teacher draws."""

    def __init__(self, config: Config) -> None:
        damaged: list[str] = []
        self.config = config.cache
        self.captions = choose_captions(config, damaged if config.on_error == "skip" else None)
        self.facts: dict[str, Any] = {"damaged": damaged}

    def begin(self, teacher: Teacher) -> None:
        """Builds the pipeline with the sampler asked for."""
        self.pipe = teacher.pipeline(self.config.sampler)
        compile_drawing(self.pipe, self.config.compile)

    def latents(self, ids: range) -> tuple[Tensor, list[dict[str, Any]], dict[int, str]]:
        """Draws one compute batch."""
        cache = self.config
        seeds = [caption_seed(cache.seed, number) for number in ids]
        texts = [self.captions[number] for number in ids]
        drawn = draw_latents(self.pipe, texts, seeds, cache.steps, cache.guidance, cache.batch)
        metas = [{"caption_id": n, "seed": seed, "source": "teacher"} for n, seed in zip(ids, seeds, strict=True)]
        return drawn, metas, {}


class ImageLatents:
    """Latents of real images: samples of the VAE's posterior."""

    def __init__(self, config: Config) -> None:
        cache = config.cache
        assert cache.images is not None
        self.config, self.skip = cache, config.on_error == "skip"
        found = find_pictures(str(resolve_path(cache.images)))
        excluded = names_any(cache.exclude)
        allowed = [picture for picture in found if not excluded.search(picture.caption)]
        if len(allowed) < cache.size:
            raise UserError(f"cache.size: {cache.size} images wanted, {cache.images} holds {len(allowed)}")
        self.pictures: list[Picture] = _shuffled(allowed, cache.seed)[: cache.size]
        self.captions = [picture.caption for picture in self.pictures]
        listing = json.dumps([[picture.name, _bytes(picture)] for picture in self.pictures])
        self.facts = {
            "damaged": [],
            "images_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        }  # of names and sizes

    def begin(self, teacher: Teacher) -> None:
        """Takes the teacher's VAE."""
        self.pipe, self.square = teacher.pipe, to_square(self.config.resolution or teacher.resolution)

    def latents(self, ids: range) -> tuple[Tensor, list[dict[str, Any]], dict[int, str]]:
        """Encodes one compute batch; a damaged image is left out where that was asked for."""
        images, seeds, metas, faults = [], [], [], {}
        for number in ids:
            picture = self.pictures[number]
            try:
                images.append(self.square(read_picture(picture)))
            except UserError as error:
                if not self.skip:
                    raise UserError(f"cache.images: {error}; mend it, or leave it out with on_error=skip") from None
                faults[number] = str(error)
                continue
            seed = caption_seed(self.config.seed, number)
            seeds.append(seed)
            metas.append({"caption_id": number, "seed": seed, "source": "image", "image": picture.name})
        if not images:
            return torch.empty(0), [], faults
        return encode(self.pipe, torch.stack(images), seeds, self.config.batch), metas, faults


def _bytes(picture: Picture) -> int:
    return picture.size if picture.size >= 0 else picture.file.stat().st_size


def choose_captions(config: Config, damaged: list[str] | None = None) -> list[str]:
    """The N captions to draw: those naming no excluded word, in a seeded random order; `damaged`: see `read_unique`.

    Raises UserError when the sources hold fewer than `cache.size` of them.
    """
    captions, dropped = read_unique(resolve_sources(config.cache.captions), damaged)
    for word in config.cache.exclude:
        if not any(map(names_any([word]).search, captions)):
            raise UserError(f"cache.exclude: no caption of the sources names {word!r}; is it misspelt?")
    excluded = names_any(config.cache.exclude)
    allowed = [caption for caption in captions if not excluded.search(caption)]
    if len(allowed) < config.cache.size:
        left = [f"{len(captions) - len(allowed)} more are excluded by cache.exclude"]
        left += [f"{number} dropped: {reason}" for reason, number in dropped.items()]
        raise UserError(
            f"cache.size: {config.cache.size} captions wanted, the sources hold {len(allowed)} ({', '.join(left)})"
        )
    return _shuffled(allowed, config.cache.seed)[: config.cache.size]


def _shuffled(items: list[Any], seed: int) -> list[Any]:
    return [items[index] for index in np.random.default_rng(seed).permutation(len(items))]
