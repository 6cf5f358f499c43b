"""The two sources of latents for a cache: drawn by the teacher for captions, or encoded from real images by its VAE.

In both, a latent depends only on the teacher, its caption number, the seed and the compute batch.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from randcond.data.cache.captioned_images import Picture, find_pictures, read_picture, to_square
from randcond.data.captions.caption_lists import names_any, read_unique
from randcond.data.captions.source_identity import source_name
from randcond.data.images.decode import READING, BadImage
from randcond.data.images.find import taken
from randcond.data.images.left_out import LeftOut
from randcond.launch.config.identity import identity_of
from randcond.launch.config.paths import resolve_path, resolve_sources
from randcond.launch.config.sections import Cache, Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import rank
from randcond.model_zoo.kernels.compilation import compile_drawing
from randcond.model_zoo.sampler import caption_seed, draw_latents, encode
from randcond.model_zoo.teacher import Teacher

Sample = dict[str, Any]


class LatentSource(Protocol):
    """The captions of a cache, and a way to make their latents."""

    captions: list[str]
    facts: dict[str, Any]  # what else the latents depend on, for the cache's plan
    damaged: list[str]  # sentences about what was left out of the sources

    def begin(self, teacher: Teacher) -> None:
        """Prepares for `latents`. Call this once before."""

    def latents(self, ids: range) -> tuple[Tensor, list[dict[str, Any]], dict[int, BadImage]]:
        """Makes the latents of one compute batch of caption numbers.

        Returns latents [n, C, h, w], scaled as the U-Net takes them, n metadata entries, both in the order of `ids`,
        and caption number -> error for the latents that could not be made.
        """


def latent_source(config: Config) -> LatentSource:
    """Returns the latent source of an experiment's `cache:` section.

    Raises UserError if there are fewer captions or images than `cache.size`.
    """
    return ImageLatents(config) if config.cache.images else TeacherLatents(config)


def cache_identity(config: Config) -> dict[str, Any]:
    """Returns the settings that decide a cache's latents, except teacher and captions. Training checks them too."""
    cache = config.cache
    settings = identity_of(cache, "cache", source_kind(config))
    settings.pop("size")  # stored as `captions`
    # The shards contain a hash of the plan, which depends on the order of its keys: new keys go last.
    ordered = {key: settings.pop(key) for key in _FIRST_KEYS if key in settings}
    sources = [source_name(source) for source in cache.captions]  # their contents are hashed when drawing
    return {"source": "images" if cache.images else "teacher", **ordered, "sources": sources, **settings}


def shown_key(key: str) -> str:
    """Returns a key of a cache's identity as experiments call it: captions is cache.size."""
    own = {"captions": "size", "sources": "captions"}.get(key, key)
    return f"cache.{own}" if own in {field.name for field in dataclasses.fields(Cache)} else key


def source_kind(config: Config) -> str:
    """Returns the kind of cache, as launch/config/identity.py names it."""
    return "image cache" if config.cache.images else "drawn cache"


_FIRST_KEYS = ("resolution", "sampler", "steps", "guidance", "seed", "exclude")


def compute_batch(cache: Cache) -> int:
    """Returns the number of samples at once. The stage has replaced null by what fits (with_cache_batch())."""
    assert cache.batch is not None
    return cache.batch


class TeacherLatents:
    """Latents that the teacher draws for the cached captions."""

    def __init__(self, config: Config) -> None:
        self.damaged: list[str] = []
        self.facts: dict[str, Any] = {}
        self.config, self.text_tokens = config.cache, config.teacher.text_tokens
        self.captions = choose_captions(config, self.damaged if config.on_error == "skip" else None)

    def begin(self, teacher: Teacher) -> None:
        """Builds the pipeline with `cache.sampler`, and compiles it if `cache.compile` says so."""
        self.pipe = teacher.pipeline(self.config.sampler)
        compile_drawing(self.pipe, self.config.compile)

    def latents(self, ids: range) -> tuple[Tensor, list[dict[str, Any]], dict[int, BadImage]]:
        """Draws the latents [n, C, h, w] of one compute batch. See `LatentSource.latents`."""
        cache = self.config
        seeds = [caption_seed(cache.seed, number) for number in ids]
        captions = [self.captions[number] for number in ids]
        latents = draw_latents(
            self.pipe,
            captions,
            seeds,
            cache.steps,
            cache.guidance,
            compute_batch(cache),
            cache.resolution,
            self.text_tokens,
        )
        metas = [{"caption_id": n, "seed": seed, "source": "teacher"} for n, seed in zip(ids, seeds, strict=True)]
        return latents, metas, {}


class ImageLatents:
    """Latents of real images, sampled from the posterior of the teacher's VAE."""

    def __init__(self, config: Config) -> None:
        cache = config.cache
        assert cache.images is not None
        self.config, self.skip = cache, config.on_error == "skip"
        left_out, passed_over = LeftOut(self.skip), Counter[str]()
        pictures = find_pictures(str(resolve_path(cache.images)), left_out, passed_over)
        self.found = taken(len(pictures), passed_over)
        excluded = names_any(cache.exclude)
        allowed = [picture for picture in pictures if not excluded.search(picture.caption)]
        if len(allowed) < cache.size:
            raise UserError(
                f"cache.size: is {cache.size}, but {cache.images} contains only {len(allowed)} images that "
                f"cache.exclude allows{f'; left out {left_out}' if left_out.counts else ''}"
            )
        self.pictures: list[Picture] = _shuffled(allowed, cache.seed)[: cache.size]
        self.captions = [picture.caption for picture in self.pictures]
        names_and_sizes = json.dumps([[picture.name, _bytes(picture)] for picture in self.pictures])
        self.damaged = [f"cache.images: left out {left_out}"] if left_out.counts else []
        self.facts: dict[str, Any] = {
            "images_sha256": hashlib.sha256(names_and_sizes.encode()).hexdigest(),
            "reading": READING,
        }

    def begin(self, teacher: Teacher) -> None:
        """Takes the VAE of the teacher's pipeline, and `cache.resolution` or the teacher's resolution."""
        if rank() == 0:
            log.info(f"cache.images: {self.found}")
            for line in self.damaged:
                log.info(line)
        self.pipe, self.square = teacher.pipe, to_square(self.config.resolution or teacher.resolution)

    def latents(self, ids: range) -> tuple[Tensor, list[dict[str, Any]], dict[int, BadImage]]:
        """Encodes one compute batch to latents [n, C, h, w]. See `LatentSource.latents`.

        With on_error=skip, damaged images are reported as errors. Otherwise raises UserError.
        """
        images, seeds, metas = [], [], []
        errors: dict[int, BadImage] = {}
        for number in ids:
            picture = self.pictures[number]
            try:
                images.append(self.square(read_picture(picture)))
            except BadImage as error:
                if not self.skip:
                    raise UserError(
                        f"cache.images: {error}; repair or remove the file, or set on_error=skip to leave it out"
                    ) from None
                errors[number] = error
                continue
            seed = caption_seed(self.config.seed, number)
            seeds.append(seed)
            metas.append({"caption_id": number, "seed": seed, "source": "image", "image": picture.name})
        if not images:
            return torch.empty(0), [], errors
        return encode(self.pipe, torch.stack(images), seeds, compute_batch(self.config)), metas, errors


def _bytes(picture: Picture) -> int:
    return picture.size if picture.size >= 0 else picture.file.stat().st_size


def choose_captions(config: Config, damaged: list[str] | None = None) -> list[str]:
    """Chooses `cache.size` captions without an excluded word, in random order by `cache.seed`.

    `damaged`: see `read_unique`. Raises UserError if the sources contain too few captions.
    """
    captions, dropped = read_unique(resolve_sources(config.cache.captions), damaged)
    for word in config.cache.exclude:
        if not any(map(names_any([word]).search, captions)):
            raise UserError(f"cache.exclude: no caption contains {word!r}; check its spelling")
    excluded = names_any(config.cache.exclude)
    allowed = [caption for caption in captions if not excluded.search(caption)]
    if len(allowed) < config.cache.size:
        details = [f"{len(captions) - len(allowed)} more are excluded by cache.exclude"]
        details += [f"{number} dropped: {reason}" for reason, number in dropped.items()]
        raise UserError(
            f"cache.size: is {config.cache.size}, but the sources contain only {len(allowed)} captions "
            f"({', '.join(details)})"
        )
    return _shuffled(allowed, config.cache.seed)[: config.cache.size]


def _shuffled(items: list[Any], seed: int) -> list[Any]:
    return [items[index] for index in np.random.default_rng(seed).permutation(len(items))]
