"""`python -m randcond.data pool|cache EXPERIMENT`."""

from pathlib import Path

from randcond.launch.config.paths import is_url, resolve_sources
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import write_config
from randcond.launch.runtime.entry_point import stage_main


def check_pool(config: Config) -> None:
    """Fails on a missing or empty caption source of the pool before any work starts."""
    _check_sources(config, {"pool.sources": config.pool.read, "pool.also": config.pool.also})


def check_cache(config: Config) -> None:
    """The same of the captions that are cached."""
    _check_sources(config, {"cache.captions": config.cache.captions})


def _check_sources(config: Config, asked: dict[str, list[str]]) -> None:
    from randcond.data.captions.caption_lists import read_source
    from randcond.data.captions.sources import expand

    if config.on_error == "skip":
        return  # the stage itself says what it leaves out
    for key, sources in asked.items():
        for source in resolve_sources(sources):
            if is_url(source):
                expand(source)  # is there; to look into it is to bring it
            elif not any(read_source(source)):
                raise UserError(f"{key}: {source} holds no caption")


def pool(config: Config) -> None:
    """Builds the extra texts of the caption pool."""
    from randcond.data.captions.pool import build_pool, reasons

    manifest = build_pool(config, progress=True)
    write_config(Path(config.paths.pool), config, keep=True)
    print(f"pool: {manifest['captions']:,} extra captions at {config.paths.pool}; dropped: {reasons(manifest)}")


def cache(config: Config) -> None:
    """Draws the latents of the cached captions."""
    from randcond.data.cache.caching import run

    run(config)
    write_config(Path(config.paths.cache), config, keep=True)


if __name__ == "__main__":
    stage_main({"pool": (check_pool, pool), "cache": (check_cache, cache)})
