"""A finished latent cache, opened for reading: a folder, or a server's copied shard by shard."""

import platform
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.latent_source import cache_identity
from randcond.data.cache.shard_store import LocalShards, RemoteShards
from randcond.data.cache.shards import FORMAT, Shard, index_path
from randcond.data.captions.caption_file import Captions
from randcond.data.inputs.fetch import fetch
from randcond.launch.config.paths import is_url
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import allow_open_files, read_json, sha256
from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.ranks import rank


class LatentCache:
    """Latents and captions by number; a process opens a shard when it first needs it."""

    def __init__(self, manifest: dict[str, Any], captions: Captions, store: LocalShards | RemoteShards) -> None:
        """`store`: where the shards are that the manifest names. Raises UserError when it is no cache's manifest."""
        self.manifest, self.captions, self._store = manifest, captions, store
        try:
            self.latent_shape = tuple(int(length) for length in manifest["latent_shape"])
            self._rows = [
                int(entry["samples"]) for entry in manifest["shards"]
            ]  # a subset takes part of its last shard
            self.missing = sum(int(entry["left_out"]) for entry in manifest["shards"])  # damaged images
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a cache's manifest ({type(error).__name__}: {error})") from None
        allow_open_files(len(self._rows))
        self.window = store.window  # shards whose latents are mixed; None: all
        self.left_out: list[str] = []  # what is wrong with shards that are left out
        self._start()

    @classmethod
    def open(cls, config: Config, teacher_fingerprint: str) -> "LatentCache":
        """The cache of an experiment, checked.

        Raises UserError when it is unfinished, damaged, or not the one the experiment asks for; with `on_error: skip`,
        damaged shards of a folder are left out.
        """
        where, asked = config.paths.cache, config.cache
        folder = _copy_manifest(where, Path(asked.local).expanduser()) if is_url(where) else Path(where)
        if not (folder / "manifest.json").is_file():
            raise UserError(f"no complete cache at {where}: draw it with `randcond run cache EXPERIMENT`")
        manifest = read_json(folder / "manifest.json")
        check_matches(
            manifest,
            {"format": FORMAT, "teacher": teacher_fingerprint, "captions": asked.size, **cache_identity(config)},
            f"the cache at {where}",
            "Make the one asked for (another paths.cache), or ask for what is there.",
        )
        captions = checked_captions(folder, manifest)
        copies = folder / f"shards-{platform.node()}"  # a home may be shared: each host has copies of its own

        def store(entries: list[dict[str, Any]]) -> LocalShards | RemoteShards:
            return RemoteShards(where, entries, copies, 1e9 * asked.local_gb) if url else LocalShards(folder, entries)

        url, skip = is_url(where), config.on_error == "skip"
        try:
            if asked.used is not None:
                shards, lenient = store(manifest["shards"]), skip and not url  # of a server's none is left out
                entries = first_entries(manifest, asked.used, lambda n: Shard(shards.path(n)), lenient)
                manifest, captions = {**manifest, "shards": entries}, Captions(captions.path, asked.used)
            cache = cls(manifest, captions, store(manifest["shards"]))
            if not url:
                cache._check_shards(skip)
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / 'manifest.json'}: damaged ({type(error).__name__}: {error})") from None
        if not cache.left_out and len(cache) + cache.missing != len(captions):
            raise UserError(f"the cache at {where} holds {len(cache)} latents, {len(captions)} captions")
        if not len(cache):
            raise UserError(f"the cache at {where} holds no sound latent: {''.join(cache.left_out[:1])}")
        return cache

    def _check_shards(self, skip: bool) -> None:
        for number, entry in enumerate(self.manifest["shards"]):
            try:
                # One rank reads them all, for all; where some may be left out, each must know which.
                shard = Shard(self._store.path(number))
                check_shard(shard, entry, whole=skip or rank() == 0)
                self._open[number] = shard
            except UserError as error:
                if not skip:
                    raise
                self.left_out.append(str(error))
                self._rows[number] = 0
        self._starts = [0, *accumulate(self._rows)]

    def _start(self) -> None:
        self._starts = [0, *accumulate(self._rows)]
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_open", "_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __len__(self) -> int:
        return self._starts[-1]

    def pair(self, index: int) -> tuple[np.ndarray, int]:
        """(latent x_0 [C, h, w], fp16; number of its own caption).

        Raises UserError naming shard and key when it is damaged.
        """
        shard, row = self._place(index)
        latent = shard.latent(row)
        if latent.shape != self.latent_shape:
            raise UserError(
                f"shard {shard.path}, key {shard.key(row)}: latent of shape {latent.shape}, not {self.latent_shape}"
            )
        return latent, int(shard.caption_ids[row])

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Has the system read latents from the disk meanwhile, for whichever process will want them."""
        if isinstance(self._store, LocalShards):
            for index in indices:
                shard, row = self._place(index)
                shard.read_ahead(row)

    def _place(self, index: int) -> tuple[Shard, int]:
        number = self._number(index)
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = self._open_shard(number)
            while self._store.open_at_once and len(self._open) > self._store.open_at_once:
                self._open.popitem(last=False)  # a copy that is open takes room even when its name is gone
        return shard, index - self._starts[number]

    def _open_shard(self, number: int) -> Shard:
        try:
            return Shard(self._store.path(number))
        except (UserError, FileNotFoundError):  # a copy that made room for another just now
            if isinstance(self._store, LocalShards):
                raise
            return Shard(self._store.path(number))

    def order(self, random: np.random.Generator) -> np.ndarray:
        """One epoch's order of the latents [N]: any order where all shards are at hand; else the shards permuted, and
        the latents within each window of them.
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
    def ahead(self) -> int:
        """How many samples before its turn a latent should be expected: a window's; 0 where all are at hand."""
        return 0 if self.window is None else self.window * max(self._rows)

    def expect(self, index: int) -> None:
        """Says that a latent will be wanted: its shard is fetched meanwhile."""
        self._store.expect(self._number(index))

    def _number(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1


def first_entries(
    manifest: dict[str, Any], count: int, shard: Callable[[int], Shard], skip: bool = False
) -> list[dict[str, Any]]:
    """A manifest's shards of its first captions: of the last one it may be a part; `shard` opens one by number.

    `skip`: of a damaged one as many as are wanted are said to be there, until it is left out.
    """
    entries, size = [], manifest["shard_size"]
    for number in range(-(-count // size)):
        entry, wanted = manifest["shards"][number], min(count - number * size, size)
        if entry["samples"] + entry["left_out"] > wanted:
            try:
                samples = int((shard(number).caption_ids < count).sum())  # fewer where images were left out
            except UserError:
                if not skip:
                    raise
                samples = wanted
            entry = {**entry, "samples": samples, "left_out": wanted - samples}
        entries.append(entry)
    return entries


def checked_captions(folder: Path, manifest: dict[str, Any]) -> Captions:
    """A cache's captions; raises UserError when they are not the manifest's: Arrow trusts what it maps."""
    path = folder / "captions.arrow"
    if sha256(path) != manifest["captions_sha256"]:
        raise UserError(f"{path}: does not match its checksum; remove the cache and draw it again")
    return Captions(path)


def check_shard(shard: Shard, entry: dict[str, Any], whole: bool) -> None:
    """Raises UserError naming a shard that is not as its manifest describes it; `whole`: read to the end."""
    if whole and sha256(shard.path) != shard.sha256:
        raise UserError(
            f"shard {shard.path}: does not match its checksum, it is damaged; "
            f"remove it and run `randcond run cache EXPERIMENT` to draw it again"
        )
    same = sha256(index_path(shard.path)) == entry["index_sha256"] and shard.sha256 == entry["sha256"]
    if not same or len(shard) < entry["samples"]:
        raise UserError(
            f"shard {shard.path}: it or its index is not the manifest's; remove it and run "
            f"`randcond run cache EXPERIMENT` to draw it again"
        )


def _copy_manifest(url: str, local: Path) -> Path:
    """Brings a server's manifest and captions; the folder of its copies, one per address."""
    if "?" in url:
        raise UserError(f"paths.cache: {url.split('?')[0]}?...: nothing lies below an address with a query; use s3://")
    folder = local / url.replace("://", "-").replace("/", "-").strip("-")
    with locked(folder, patience=float("inf")):
        fetch(f"{url.rstrip('/')}/manifest.json", folder / "manifest.json")
        wanted = read_json(folder / "manifest.json")["captions_sha256"]
        captions = folder / "captions.arrow"
        if not captions.is_file() or sha256(captions) != wanted:
            fetch(f"{url.rstrip('/')}/captions.arrow", captions, wanted)
    return folder
