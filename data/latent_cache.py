"""A finished latent cache, opened for reading: a folder, or a server's copied shard by shard."""

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache import FORMAT, check_captions
from randcond.data.captions import Captions
from randcond.data.fetch import fetch
from randcond.data.files import check_same, read_json, sha256
from randcond.data.lock import holding
from randcond.data.ranks import rank
from randcond.data.shard_store import LocalShards, RemoteShards, window_of
from randcond.data.shards import Shard, index_path
from randcond.launch.config import Config, is_url


class LatentCache:
    """Latents and captions by number; a process opens a shard when it first needs it."""

    def __init__(self, config: Config, teacher_fingerprint: str) -> None:
        """Raises ValueError when the cache is unfinished, damaged, or not the one the experiment asks for."""
        where, asked = config.paths.cache, config.cache
        folder = _copy_manifest(where, Path(asked.local).expanduser()) if is_url(where) else Path(where)
        if not (folder / "manifest.json").is_file():
            raise ValueError(f"no complete cache at {where}: draw it with `randcond run cache EXPERIMENT`")
        self.manifest = read_json(folder / "manifest.json")
        check_same(
            self.manifest,
            {
                "format": FORMAT,
                "teacher": teacher_fingerprint,
                "seed": asked.seed,
                "sampler": asked.sampler,
                "steps": asked.steps,
                "guidance": asked.guidance,
            },
            f"the cache at {where}",
            "Draw the one asked for (another paths.cache), or ask for what is there.",
        )
        if sha256(folder / "captions.arrow") != self.manifest["captions_sha256"]:  # Arrow trusts what it maps
            raise ValueError(
                f"{folder / 'captions.arrow'}: does not match its checksum; remove the cache and draw it again"
            )
        self.captions = Captions(folder / "captions.arrow")
        check_captions(config, self.captions)
        entries = self.manifest["shards"]
        self.window: int | None = None
        if is_url(where):
            room = int(1e9 * asked.local_gb)
            self.window = window_of([entry["bytes"] for entry in entries], room)
            self._store: Any = RemoteShards(where, entries, folder / "shards", room, self.window)
        else:
            self._store = LocalShards(folder, entries)
        self._start()
        if not is_url(where):
            self._check_shards(entries)
        if len(self) != len(self.captions):
            raise ValueError(f"the cache at {where} holds {len(self)} latents, {len(self.captions)} captions")

    def _check_shards(self, entries: list[dict[str, Any]]) -> None:
        for number, entry in enumerate(entries):
            shard = self._open[number] = Shard(self._store.path(number))
            if rank() == 0 and sha256(shard.path) != shard.sha256:  # one rank reads them all, for all
                raise ValueError(
                    f"shard {shard.path}: does not match its checksum, it is damaged; "
                    f"remove it and run `randcond run cache EXPERIMENT` to draw it again"
                )
            if sha256(index_path(shard.path)) != entry["index_sha256"] or shard.sha256 != entry["sha256"]:
                raise ValueError(
                    f"shard {shard.path}: it or its index is not the manifest's; remove it and run "
                    f"`randcond run cache EXPERIMENT` to draw it again"
                )

    def _start(self) -> None:
        # A subset takes the first few of its last shard.
        self._starts = [0, *accumulate(entry["samples"] for entry in self.manifest["shards"])]
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

        Raises ValueError naming shard and key when it is damaged.
        """
        number = self._number(index)
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = Shard(self._store.path(number))
            while self._store.open_at_once and len(self._open) > self._store.open_at_once:
                self._open.popitem(last=False)  # a copy that is open takes room even when its name is gone
        row = index - self._starts[number]
        return shard.latent(row), int(shard.caption_ids[row])

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
        return 0 if self.window is None else self.window * self._starts[1]

    def expect(self, index: int) -> None:
        """Says that a latent will be wanted: its shard is fetched meanwhile."""
        self._store.expect(self._number(index))

    def _number(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1


def _copy_manifest(url: str, local: Path) -> Path:
    """Brings a server's manifest and captions; the folder of its copies, one per address."""
    folder = local / url.replace("://", "-").replace("/", "-").strip("-")
    with holding(folder, patience=float("inf")):
        fetch(f"{url.rstrip('/')}/manifest.json", folder / "manifest.json")
        wanted = read_json(folder / "manifest.json")["captions_sha256"]
        captions = folder / "captions.arrow"
        if not captions.is_file() or sha256(captions) != wanted:
            fetch(f"{url.rstrip('/')}/captions.arrow", captions, wanted)
    return folder
