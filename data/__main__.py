"""`python -m randcond.data pool|cache EXPERIMENT`."""

from pathlib import Path

from randcond.launch.config import Config, resolve_sources
from randcond.launch.stage import stage_main, write_config


def check_sources(config: Config) -> None:
    """Fails on a missing or empty caption source before any work starts."""
    from randcond.data.captions import read_source

    if config.on_error == "skip":
        return  # the stage itself says what it leaves out

    pool = config.pool
    for key, sources in (
        ("cache.captions", config.cache.captions),
        ("pool.sources", pool.read),
        ("pool.also", pool.also),
    ):
        for source in resolve_sources(sources):
            if not any(read_source(source)):
                raise ValueError(f"{key}: {source} holds no caption")


def pool(config: Config) -> None:
    """Builds the extra texts of the caption pool."""
    from randcond.data.pool import build_pool, reasons

    manifest = build_pool(config, progress=True)
    write_config(Path(config.paths.pool), config)
    print(f"pool: {manifest['captions']:,} extra captions at {config.paths.pool}; dropped: {reasons(manifest)}")


def cache(config: Config) -> None:
    """Draws the latents of the cached captions."""
    from randcond.data.cache import run

    run(config)
    write_config(Path(config.paths.cache), config)


if __name__ == "__main__":
    stage_main({"pool": (check_sources, pool), "cache": (check_sources, cache)})
