"""What a stage has done so far, by the files in its folder. A forecast is about what is left."""

import os
from contextlib import suppress
from pathlib import Path

from randcond.launch.cluster.commands import artefact
from randcond.launch.config.paths import eval_folder
from randcond.launch.config.sections import Config
from randcond.launch.runtime.files import read_record


def is_done(stage: str, config: Config) -> bool:
    """Returns True if a stage's artefact is complete.

    If `train.steps` was raised since, a finished training is not, and neither is the evaluation of its student.
    """
    path = artefact(stage, config)
    if stage == "eval" and not is_done("train", config):
        return False
    return path.is_file() and (stage != "train" or read_record(path).get("steps") == config.train.steps)


def share_done(stage: str, config: Config) -> float:
    """Returns the share of the work of caching or training that is done; 0.0 of the other stages."""
    if stage == "cache":
        shards = sum(1 for _ in Path(config.paths.cache).glob("latents-*.tar"))
        return min(1.0, shards * config.cache.shard_size / config.cache.size)
    if stage == "train":
        names = [path.name for path in Path(config.paths.run, "checkpoints").glob("step-*")]
        numbers = [int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit()]
        return min(1.0, max(numbers, default=0) / config.train.steps)
    return 0.0


def bytes_written(stage: str, config: Config) -> int:
    """Returns the bytes of the files that a stage has written."""
    if stage == "eval":
        return _size(eval_folder(config))
    folder = _size(artefact(stage, config).parent)
    return folder - _size(eval_folder(config)) if stage == "train" else folder  # it is in the run's folder


def _size(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # another process has just removed it
                total += os.lstat(os.path.join(where, name)).st_size
    return total
