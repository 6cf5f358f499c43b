"""Latent caches of shards that a test wrote, opened without an experiment or a teacher."""

from pathlib import Path

from randcond.data.captions import Captions
from randcond.data.latent_cache import LatentCache
from randcond.data.shard_store import LocalShards
from randcond.data.shards import Shard, describe


def opened(folder: Path) -> LatentCache:
    """The cache of a folder's shards and captions.arrow."""
    shards = sorted(folder.glob("*.tar"))
    entries = [describe(shard) for shard in shards]
    manifest = {"shards": entries, "latent_shape": list(Shard(shards[0]).latent(0).shape)}
    return LatentCache(manifest, Captions(folder / "captions.arrow"), LocalShards(folder, entries))
