"""What a run's numbers depend on: a run resumes only where all of it is the same."""

from pathlib import Path
from typing import Any

from randcond.data.cache.latent_cache import LatentCache
from randcond.launch.config.batch import batch_shape
from randcond.launch.config.experiments import to_dict
from randcond.launch.config.sections import Config
from randcond.launch.runtime.files import read_json
from randcond.launch.runtime.ranks import world_size


def run_identity(config: Config, cache: LatentCache) -> dict[str, Any]:
    """What a checkpoint's numbers depend on; a run resumes only where all of it is the same."""
    resolved = to_dict(config)
    free = {"steps", "workers", "log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "sample_every"}
    free |= {"skip_nonfinite", "log_samples", "profile", "eval_every", "eval_size", "eval_weights"}
    used = {name: weight for name, weight in resolved["train"]["losses"].items() if weight}
    return {
        "student": resolved["student"],
        "conditioning": resolved["conditioning"],
        "train": {key: value for key, value in resolved["train"].items() if key not in free} | {"losses": used},
        "teacher": cache.manifest["teacher"],
        "cache": [shard["sha256"] for shard in cache.manifest["shards"]],
        "cached": len(cache),  # less than the shards hold where some are left out
        "window": cache.window,
        "precision": [config.engine.precision, config.teacher.dtype, *_fp8(config)],
        "pool": read_json(Path(config.paths.pool) / "manifest.json")["sha256"],
    }


def _fp8(config: Config) -> list[str]:
    """A teacher in fp8 has one scale for a whole micro-batch, on which its predictions so depend."""
    if not config.engine.teacher_fp8:
        return []
    micro, _ = batch_shape(config.train.global_batch, world_size(), config.engine.micro_batch)
    return [f"fp8, micro-batches of {micro}"]
