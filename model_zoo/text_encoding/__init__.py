"""How captions are encoded where that is costly: in length buckets, from a cache, from the host's memory."""
