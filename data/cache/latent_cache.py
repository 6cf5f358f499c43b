"""Reads a finished latent cache, from a folder or from a server, whose shards are copied on first use."""

import platform
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.latent_source import cache_identity, shown_key, source_kind
from randcond.data.cache.manifest import (
    ShardEntry,
    captions_of_shard,
    check_captions,
    check_shard,
    first_entries,
    read_cache_record,
    rewrite,
    shard_entries,
)
from randcond.data.cache.shard_store import LocalShards, RemoteShards
from randcond.data.cache.shards import FORMAT, Shard
from randcond.data.captions.caption_file import Captions
from randcond.data.inputs.fetch import fetch, fill_in
from randcond.launch.config.identity import absent_settings
from randcond.launch.config.paths import is_url
from randcond.launch.config.sections import Cache, Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import allow_open_files, read_record, sha256
from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import rank
from randcond.launch.runtime.this_command import stage_command
from randcond.launch.urls import show_url


class LatentCache:
    """Random access to the latents of a cache by index. A process opens each shard when it first needs it."""

    def __init__(self, manifest: dict[str, Any], captions: Captions, store: LocalShards | RemoteShards) -> None:
        """`store`: locates the cache's shards. Raises UserError if this is not the manifest of a cache."""
        self.manifest, self.captions, self._store = manifest, captions, store
        self.entries = store.entries
        try:
            self.latent_shape = tuple(int(length) for length in manifest["latent_shape"])  # (C, h, w)
        except (KeyError, TypeError, ValueError) as error:
            path = captions.path.with_name("manifest.json")
            raise UserError(f"{path}: not the manifest of a cache ({type(error).__name__}: {error})") from None
        self._rows = [entry.samples for entry in self.entries]  # latents used of each shard
        self.missing = sum(entry.left_out for entry in self.entries)  # number of damaged images
        allow_open_files(len(self._rows))
        self.window = store.window  # number of shards whose latents are mixed; None: all
        self.left_out: list[str] = []  # errors of the shards that are skipped
        self._reset()

    @classmethod
    def open(cls, config: Config, teacher_fingerprint: str) -> "LatentCache":
        """Opens and checks the cache of an experiment.

        With on_error=skip, damaged shards in a local folder are skipped.
        Raises UserError if the cache is incomplete or damaged, or was made with other settings.
        """
        location, cache_config = config.paths.cache, config.cache
        folder = _copy_manifest(location, Path(cache_config.local).expanduser()) if is_url(location) else Path(location)
        if not (folder / "manifest.json").is_file():
            raise UserError(
                f"no complete cache at {show_url(location)}: create or finish it with {stage_command('cache')}"
            )
        manifest = read_cache_record(
            folder / "manifest.json", "captions_sha256", sources=config.cache.captions, remedy=rewrite(folder)
        )
        check_matches(
            manifest,
            {"format": FORMAT, "teacher": teacher_fingerprint, "captions": cache_config.size, **cache_identity(config)},
            f"the cache at {show_url(location)}",
            "To use it, restore these settings. To make the other cache, give another paths.cache.",
            absent_settings(Cache, "cache", source_kind(config)),
            shown_key,
        )
        captions = checked_captions(folder, manifest)
        remote, skip = is_url(location), config.on_error == "skip"

        def store(entries: list[ShardEntry]) -> LocalShards | RemoteShards:
            if not remote:
                return LocalShards(folder, entries)
            copies = folder / f"shards-{platform.node()}"  # one folder per host: hosts may share a home folder
            return RemoteShards(location, entries, copies, 1e9 * cache_config.local_gb)

        try:
            entries = shard_entries(manifest, folder / "manifest.json")
            if (used := cache_config.used) is not None:
                shards = store(entries)
                skip_damaged = skip and not remote  # shards on a server are never skipped
                size = manifest["shard_size"]
                entries = first_entries(entries, size, used, lambda n: Shard(shards.path(n)), skip_damaged)
                captions = Captions(captions.path, used)
            cache = cls(manifest, captions, store(entries))
            if not remote:
                cache._check_shards(skip)
        except (KeyError, TypeError) as error:
            damage = f"{type(error).__name__}: {error}"
            raise UserError(f"{folder / 'manifest.json'}: damaged ({damage}); {rewrite(folder)}") from None
        if not cache.left_out and len(cache) + cache.missing != len(captions):
            raise UserError(
                f"the cache at {location}: its manifest lists {len(cache)} latents, expected {len(captions)}, one for "
                f"each caption; {rewrite(folder)}"
            )
        if not len(cache):
            raise UserError(f"the cache at {location} contains no valid latent: {''.join(cache.left_out[:1])}")
        return cache

    def _check_shards(self, skip: bool) -> None:
        for number, entry in enumerate(self.entries):
            try:
                # Rank 0 verifies the checksums for all ranks. But if damaged shards are skipped, each rank must know.
                shard = Shard(self._store.path(number))
                check_shard(shard, entry, read_all=skip or rank() == 0)
                self._check_captions(number, shard)
                self._open[number] = shard
            except UserError as error:
                if not skip:
                    raise
                self.left_out.append(str(error))
                self._rows[number] = 0
        self._starts = [0, *accumulate(self._rows)]

    def _check_captions(self, number: int, shard: Shard) -> None:
        """Raises UserError if a shard does not hold the captions of its number."""
        size = self.manifest.get("shard_size")
        if isinstance(size, int) and size > 0:
            check_captions(shard, self.entries[number], captions_of_shard(number, size, len(self.captions)))

    def _reset(self) -> None:
        self._starts = [0, *accumulate(self._rows)]
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_open", "_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def __len__(self) -> int:
        return self._starts[-1]

    def pair(self, index: int) -> tuple[np.ndarray, int]:
        """Returns latent x_0, fp16 [C, h, w], and the number of its own caption.

        Raises UserError with shard and key if the latent is damaged.
        """
        shard, row = self._locate(index)
        latent = shard.latent(row)
        if latent.shape != self.latent_shape:
            raise UserError(
                f"shard {shard.path}, key {shard.key(row)}: the latent has shape {latent.shape}, "
                f"expected {self.latent_shape}"
            )
        return latent, int(shard.caption_ids[row])

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Asks the operating system to read latents from disk in the background. Any process on the host benefits."""
        if isinstance(self._store, LocalShards):
            for index in indices:
                shard, row = self._locate(index)
                shard.read_ahead(row)

    def _locate(self, index: int) -> tuple[Shard, int]:
        number = self._number(index)
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = self._open_shard(number)
            while self._store.open_at_once and len(self._open) > self._store.open_at_once:
                self._open.popitem(last=False)  # an open copy takes disk space even after it is deleted
        return shard, index - self._starts[number]

    def _open_shard(self, number: int) -> Shard:
        if isinstance(self._store, LocalShards):
            return Shard(self._store.path(number))  # open() has checked its captions
        try:
            shard = Shard(self._store.path(number))
        except (UserError, FileNotFoundError):
            self._store.discard(number)  # the copy is damaged, or another process deletes it: fetch it again
            shard = Shard(self._store.path(number))
        self._check_captions(number, shard)
        return shard

    def order(self, random: np.random.Generator) -> np.ndarray:
        """Returns a random order of the latents for one epoch, as indices int64 [N].

        Without a window, permutes all latents. With one, permutes the shards, then the latents within each window.
        """
        if self.window is None:
            return random.permutation(len(self))
        shards = random.permutation(len(self._starts) - 1)
        parts = []
        for first in range(0, len(shards), self.window):
            members = [np.arange(self._starts[n], self._starts[n + 1]) for n in shards[first : first + self.window]]
            parts.append(random.permutation(np.concatenate(members)))
        return np.concatenate(parts)

    @property
    def prefetch_distance(self) -> int:
        """How many samples in advance to prefetch a latent: the samples of a window. 0: no prefetch is needed."""
        return 0 if self.window is None else self.window * max(self._rows)

    def prefetch(self, index: int) -> None:
        """Starts to fetch the shard of a latent in the background."""
        self._store.prefetch(self._number(index))

    def _number(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1


def checked_captions(folder: Path, manifest: dict[str, Any]) -> Captions:
    """Opens the captions of a cache. Raises UserError if they don't match the checksum in the manifest.

    The check is necessary because Arrow does not validate the data that it maps.
    """
    path = folder / "captions.arrow"
    remedy = f"{stage_command('cache', folder)} writes it again from the sources, and makes no sound shard again"
    if not path.is_file():
        raise UserError(f"{path}: is missing; {remedy}")
    if sha256(path) != manifest["captions_sha256"]:
        raise UserError(f"{path}: does not match its checksum; {remedy}")
    return Captions(path)


def _copy_manifest(url: str, local: Path) -> Path:
    """Downloads the manifest and captions of a cache on a server. Returns the folder for its copies, one per URL."""
    if "?" in url:
        raise UserError(f"paths.cache: {show_url(url)}: a URL with a query can't be a folder; use s3://")
    folder = local / _folder_name(show_url(url))
    if (older := local / _folder_name(fill_in(url))) != folder and older.is_dir() and not folder.exists():
        with suppress(OSError):  # another rank was faster, or the folder is in use
            older.rename(folder)
            log.info(f"{folder}: its name held a password; renamed without it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache.local: {folder} can't be made ({error.strerror}); set it to another folder") from None
    with locked(folder, patience=float("inf")):
        fetch(f"{url.rstrip('/')}/manifest.json", folder / "manifest.json")
        checksum = read_record(folder / "manifest.json", "captions_sha256")["captions_sha256"]
        captions = folder / "captions.arrow"
        if not captions.is_file() or sha256(captions) != checksum:
            fetch(f"{url.rstrip('/')}/captions.arrow", captions, checksum)
    return folder


def _folder_name(url: str) -> str:
    return url.replace("://", "-").replace("/", "-").strip("-")
