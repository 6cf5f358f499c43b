"""Opens a latent cache that a test wrote, and draws timesteps as DDPM does, without an experiment or a teacher."""

from pathlib import Path

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.manifest import describe
from randcond.data.cache.shard_store import LocalShards
from randcond.data.cache.shards import Shard
from randcond.data.captions.caption_file import Captions
from randcond.data.stream.conditioning import Times
from randcond.model_zoo.process.levels import TableLevel
from randcond.model_zoo.process.timesteps import UniformIntegers


def opened(folder: Path) -> LatentCache:
    """Returns the cache of the shards and captions.arrow in a folder."""
    shards = sorted(folder.glob("*.tar"))
    entries = [describe(shard) for shard in shards]
    manifest = {"latent_shape": list(Shard(shards[0]).latent(0).shape)}
    return LatentCache(manifest, Captions(folder / "captions.arrow"), LocalShards(folder, entries))


def ddpm_times(p: str = "exponential", timesteps: int = 1000, **p_args: float) -> Times:
    """Returns draws of t = 0 .. timesteps - 1, with p of t/T."""
    level = TableLevel(tuple(t / timesteps for t in range(timesteps)))
    return Times(UniformIntegers(timesteps), p, p_args, level)
