"""Runs the pool stage or the cache stage: `python -m randcond.data pool|cache EXPERIMENT`."""

from pathlib import Path

from randcond.launch.config.paths import is_url, resolve_path, resolve_sources
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import write_config
from randcond.launch.runtime.entry_point import stage_main
from randcond.launch.runtime.logs import log


def check_pool(config: Config) -> None:
    """Checks the caption sources of the pool. Raises UserError if one is missing or empty."""
    _check_sources(config, {"pool.sources": config.pool.read, "pool.also": config.pool.also})


def check_cache(config: Config) -> None:
    """Checks the teacher, its settings, and the sources of the cached captions. Raises UserError for a fault."""
    from randcond.data.teacher_settings import check_settings
    from randcond.model_zoo.families.faults.look import check_teacher

    check_teacher(resolve_path(config.teacher.path))
    check_settings(config, "cache")
    _check_sources(config, {"cache.captions": config.cache.captions})


def _check_sources(config: Config, sources_by_key: dict[str, list[str]]) -> None:
    from randcond.data.captions.caption_lists import read_source
    from randcond.data.captions.sources import expand

    if config.on_error == "skip":
        return  # the stage itself reports the files that it skips
    for key, sources in sources_by_key.items():
        for source in resolve_sources(sources):
            if is_url(source):
                expand(source)  # checks only that it exists: reading it would download it
            elif not any(read_source(source)):
                raise UserError(f"{key}: {source} contains no captions")


def pool(config: Config) -> None:
    """Writes the extra texts of the caption pool to `paths.pool`."""
    from randcond.data.captions.pool import build_pool, reasons

    manifest = build_pool(config, progress=True)
    write_config(Path(config.paths.pool), config, keep=True)
    log.info(f"pool: {manifest['captions']:,} extra texts at {config.paths.pool}; dropped: {reasons(manifest)}")


def cache(config: Config) -> None:
    """Writes the latents of the cached captions to `paths.cache`."""
    from randcond.data.cache.caching import run
    from randcond.launch.device.batches import with_cache_batch

    config = with_cache_batch(config)
    run(config)
    write_config(Path(config.paths.cache), config, keep=True)


if __name__ == "__main__":
    stage_main({"pool": (check_pool, pool), "cache": (check_cache, cache)})
