"""Opens a latent cache that a test wrote, without an experiment or a teacher."""

from pathlib import Path

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.manifest import describe
from randcond.data.cache.shard_store import LocalShards
from randcond.data.cache.shards import Shard
from randcond.data.captions.caption_file import Captions


def opened(folder: Path) -> LatentCache:
    """Returns the cache of the shards and captions.arrow in a folder."""
    shards = sorted(folder.glob("*.tar"))
    entries = [describe(shard) for shard in shards]
    manifest = {"latent_shape": list(Shard(shards[0]).latent(0).shape)}
    return LatentCache(manifest, Captions(folder / "captions.arrow"), LocalShards(folder, entries))
