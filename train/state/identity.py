"""A run's identity: everything that its numbers depend on. A run resumes only if nothing of it has changed."""

from pathlib import Path
from typing import Any

from randcond.data.cache.latent_cache import LatentCache
from randcond.launch.config.engines import batch_shape
from randcond.launch.config.identity import absent_settings, identity_of
from randcond.launch.config.paths import exported_weights, student_folder
from randcond.launch.config.sections import NO_TEXT_FACTS, Conditioning, Config, Student, Train
from randcond.launch.runtime.files import read_record
from randcond.launch.runtime.ranks import world_size
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.train.schedule import FIXED

# Dotted key -> the value that its absence from a stored identity stands for.
ABSENT = {
    **absent_settings(Student, "run", above="student."),
    "student.start_from": "",
    **absent_settings(Conditioning, "run", above="conditioning."),
    **absent_settings(Train, "run", above="train."),
    **NO_TEXT_FACTS,
}


def run_identity(config: Config, cache: LatentCache) -> dict[str, Any]:
    """The identity that a run's checkpoints and train.json hold."""
    return {
        **run_settings(config),
        "teacher": cache.manifest["teacher"],
        "cache": [entry.sha256 for entry in cache.entries],
        "cached": len(cache),  # fewer than the shards hold if some are left out
        "window": cache.window,
        "pool": read_record(Path(config.paths.pool) / "manifest.json", "sha256")["sha256"],
    }


def run_settings(config: Config) -> dict[str, Any]:
    """The part of a run's identity that the settings decide."""
    student, train = identity_of(config.student, "run"), identity_of(config.train, "run")
    if earlier := config.student.earlier:
        student["start_from"] = folder_fingerprint(Path(earlier))
        if not config.student.start_from:
            student["init"] = "student"  # which one says its fingerprint, wherever it is
    if config.train.schedule in FIXED:
        train["steps"] = config.train.steps
    return {
        "student": student,
        "conditioning": identity_of(config.conditioning, "run"),
        "train": train,
        **config.teacher.text_facts,
        "precision": [config.engine.precision, config.teacher.dtype, *_fp8(config)],
    }


def comparable(stored: dict[str, Any], identity: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns two identities, without the number of steps if only one has it: then their schedules differ."""
    both = [stored, identity]
    if len({"steps" in each["train"] for each in both}) == 1:
        return both
    return [{**each, "train": {k: v for k, v in each["train"].items() if k != "steps"}} for each in both]


def how_to_go_on(config: Config) -> str:
    """What to do about a run whose settings have changed."""
    student = student_folder(config, exported_weights(config)[-1])
    schedule = config.train.schedule
    steps = ""
    if schedule in FIXED:
        steps = (
            f"With train.schedule={schedule}, train.steps decides the learning rate of every step, so it can't change "
            f"(with constant and wsd it can be raised). "
        )
    return (
        f"{steps}To resume it, restore these settings. To train anew, give another paths.run; with "
        f"student.init={student} the new run starts from the exported student of this one."
    )


def _fp8(config: Config) -> list[str]:
    """With an fp8 teacher, one scale covers a whole micro-batch, so the predictions depend on the micro-batch."""
    if not config.engine.teacher_fp8:
        return []
    micro, _ = batch_shape(config.train.global_batch, world_size(), config.engine.micro_batch)
    return [f"fp8, micro-batches of {micro}"]
