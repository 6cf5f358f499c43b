"""The plan of a cache: everything that its latents depend on, and the captions that it was made for.

In: the experiment, the teacher, the captions of the sources. Out: plan.json and captions.arrow in the cache's folder. A
plan or captions that are damaged are restored from what else there is. The shards hold a hash of the plan.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from randcond.data.cache.latent_source import LatentSource, cache_identity, shown_key, source_kind
from randcond.data.cache.manifest import DAMAGED, HASH, Plan, plan_hash, plan_of, read_cache_record
from randcond.data.cache.shard_work import plans_of
from randcond.data.cache.shards import FORMAT
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.data.images.decode import READING
from randcond.launch.config.identity import absent_settings, identity_of
from randcond.launch.config.paths import is_url
from randcond.launch.config.sections import NO_TEXT_FACTS, Cache, Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import RESTORE, naming_full_disk, read_record, sha256, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import cpu_threads, rank
from randcond.model_zoo.sampler import FP32_NOISE, sampler_dtype
from randcond.model_zoo.teacher import Teacher

_RESTORE_MANIFEST = "restore it from a copy; the manifest of a part of another cache: `randcond cache subset` makes it"
_REMEDY = "To use it, restore these settings. To make another cache, give another paths.cache."


def stored_plan(folder: Path, shards: Sequence[Path], sources: Sequence[str]) -> Plan | None:
    """Returns the plan that the shards of a folder were made by, None if there is none yet.

    plan.json and manifest.json both hold it; if one is damaged or missing, or does not belong to any of `shards`, the
    other counts. The plan of a subset is in its manifest, and has the key `subset_of`. What an older version left of
    passwords and queries of URLs is taken out of both. `sources`: the experiment's, see `stored_without_secrets`.
    Raises UserError if none of the files can be read.
    """
    plans: dict[str, Plan] = {}
    damages: dict[str, UserError] = {}
    for name, remedy in (("plan.json", RESTORE), ("manifest.json", _RESTORE_MANIFEST)):
        path = folder / name
        try:
            if path.is_file():
                plans[name] = plan_of(read_cache_record(path, "captions_sha256", sources=sources, remedy=remedy))
        except UserError as error:
            damages[name] = error
    if damages and not plans:
        raise next(iter(damages.values()))
    for name in damages if rank() == 0 else ():
        log.warning(f"cache: {folder / name} is damaged; it is written again")
    if len({plan_hash(plan) for plan in plans.values()}) < 2:
        return next(iter(plans.values()), None)
    known = {plan_hash(plan): name for name, plan in plans.items()}
    name = next((known[made_of] for _, made_of in plans_of(shards) if made_of in known), "plan.json")
    if name != "plan.json" and rank() == 0:
        log.warning(f"cache: {folder}/plan.json is not the plan of the shards here; written again from {name}")
    return plans[name]


def check_kept_cache(config: Config) -> None:
    """Raises UserError if the cache in the experiment's folder was made with other settings. Reads its plan alone.

    The cache stage compares teacher and captions as well, and repairs a plan that is damaged.
    """
    folder, cache = Path(config.paths.cache), config.cache
    if is_url(config.paths.cache):
        return
    plans = []
    for path in (folder / "plan.json", folder / "manifest.json"):
        with suppress(UserError):
            plans += [read_cache_record(path, sources=cache.captions)] if path.is_file() else []
    if not plans or "subset_of" in plans[0]:
        return
    expected = {"captions": cache.size, **cache_identity(config)}
    if not (folder / "manifest.json").is_file():
        expected["shard_size"] = cache.shard_size
    absent = absent_settings(Cache, "cache", source_kind(config), "shards")
    check_matches(plans[0], expected, f"the cache at {folder}", _REMEDY, absent, shown_key)


def agreed_plan(config: Config, folder: Path, teacher: Teacher, source: LatentSource, shards: list[Path]) -> Plan:
    """Returns the plan of the cache in a folder, with plan.json and captions.arrow as it says.

    Writes them if the folder has none; writes captions.arrow again if it is damaged. Raises UserError if the folder
    contains a cache with other settings or captions, or if its plan is not that of its shards. If all shards are there,
    they may have been drawn with another `teacher.dtype`.
    """
    stored = stored_plan(folder, shards, config.cache.captions)
    digest = restore_captions(folder, source.captions, stored, any(map(Path.is_file, shards)))
    plan = new_plan(config, teacher, digest, source)
    if stored is not None:
        absent = absent_settings(Cache, "cache", source_kind(config), "shards") | {"compile": None, "reading": READING}
        absent |= NO_TEXT_FACTS
        expected = {key: value for key, value in plan.items() if key not in (DAMAGED, HASH)} | config.teacher.text_facts
        expected["captions_sha256"] = stored["captions_sha256"]  # compared below
        drawn_in = stored.get("compute_dtype")
        if drawn_in not in (None, config.teacher.dtype) and all(map(Path.is_file, shards)):  # a training takes any
            expected["compute_dtype"] = drawn_in
            if rank() == 0:
                log.info(f"cache: its latents were drawn with teacher.dtype={drawn_in}, and are used as they are")
        if expected["sampler_dtype"] == FP32_NOISE and all(map(Path.is_file, shards)):
            expected["sampler_dtype"] = stored.get("sampler_dtype")  # older versions drew the noise in bf16
        check_matches(
            _as_settings(stored), _as_settings(expected), f"the cache at {folder}", _REMEDY, absent, shown_key
        )
        if digest != stored["captions_sha256"]:
            raise UserError(
                f"{folder / 'captions.arrow'}: is missing or damaged, and the sources give other captions now than "
                f"when the cache was made; restore the sources, or captions.arrow from a copy; the shards stay as "
                f"they are"
            )
        plan = stored  # may have fewer keys, if an older version wrote it: the shards contain a hash of it
    _refuse_foreign(folder, shards, plan_hash(plan), has_plan=stored is not None)
    if list(Captions(folder / "captions.arrow")) != source.captions:
        raise UserError(f"the cache at {folder}: its captions differ from the captions in its sources now. {_REMEDY}")
    if stored is None or not _is_stored(folder / "plan.json", plan):
        write_json(folder / "plan.json", plan)
    return plan


def _as_settings(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plan with the names that a user sets in place of those that differ from them."""
    return {"teacher.dtype" if key == "compute_dtype" else key: value for key, value in plan.items()}


def _is_stored(path: Path, plan: Plan) -> bool:
    try:
        return path.is_file() and read_record(path) == plan
    except UserError:
        return False


def _refuse_foreign(folder: Path, shards: list[Path], made_of: str, has_plan: bool) -> None:
    """Raises UserError if the shards of a folder are those of another cache: they may have taken days to make.

    `made_of`: hash of the plan. `has_plan`: the folder holds this plan. If it does, some of its shards may be those of
    another cache, but not all. If it holds none, no shard may be.
    """
    if has_plan and any(other == made_of for _, other in plans_of(shards)):
        return
    foreign = [(shard, other) for shard, other in plans_of(shards) if other != made_of]
    if not foreign:
        return
    (first, other), more = foreign[0], f", and so do {len(foreign) - 1} more" if len(foreign) > 1 else ""
    records = "plan.json or manifest.json here is theirs" if has_plan else f"{folder} has no plan.json that names them"
    raise UserError(
        f"shard {first}: belongs to a cache with other settings (teacher, sampler, captions, versions of libraries, "
        f"...){more}: it was made by plan {other[:8]}, expected {made_of[:8]}; {'no ' * has_plan}{records}; restore "
        f"plan.json or manifest.json from a copy, or give another paths.cache; the shards stay as they are"
    )


def restore_captions(folder: Path, captions: list[str], stored: Plan | None, has_shards: bool) -> str:
    """Writes captions.arrow from the captions of the sources if it is missing or damaged.

    `stored`: the plan of the cache, whose checksum the file must match; None if there is no plan. `has_shards`: then a
    file without a plan is kept. Returns the file's sha256. If the sources give other captions than the plan, writes
    nothing, and returns the sha256 of theirs.
    """
    path = folder / "captions.arrow"
    found = sha256(path) if path.is_file() else ""
    if found and (found == stored["captions_sha256"] if stored else has_shards):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with naming_full_disk(path), TemporaryDirectory(dir=folder, prefix=".captions.") as temporary:
        written = Path(temporary) / "captions.arrow"
        write_captions(written, captions)
        digest = sha256(written)
        if stored is None or digest == stored["captions_sha256"]:
            os.replace(written, path)
            if stored and rank() == 0:
                log.warning(f"cache: {path} was {'damaged' if found else 'missing'}; written again from the sources")
    return digest


def new_plan(config: Config, teacher: Teacher, captions_hash: str, source: LatentSource) -> Plan:
    """Returns everything that the latents depend on. Two caches with the same plan contain the same latents.

    `captions_hash`: sha256 of captions.arrow. What was left out of the sources stands in the plan, but its words are no
    part of the hash in the shards: the captions have a hash of their own.
    """
    cache = config.cache
    shards = identity_of(cache, "shards")
    shards.pop("compile")  # stored as None if nothing is compiled
    plan = {
        "format": FORMAT,
        "teacher": teacher.fingerprint,
        "captions": cache.size,
        "captions_sha256": captions_hash,
        **cache_identity(config),
        DAMAGED: [],
        **source.facts,
        **shards,
        **{key: value for key, value in config.teacher.text_facts.items() if value is not None},  # as below
        "compute_dtype": config.teacher.dtype,
        "sampler_dtype": sampler_dtype(teacher.pipe),
        "latent_shape": _latent_shape(config, teacher),
        "threads": cpu_threads(),
        "compile": None if cache.compile == "none" else cache.compile,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
    if not cache.images and cache.resolution is None:
        del plan["resolution"]  # the shards hold a hash of the plan, and older plans of drawn latents lack this key
    return {**plan, DAMAGED: source.damaged, HASH: plan_hash(plan)} if source.damaged else plan


def _latent_shape(config: Config, teacher: Teacher) -> list[int]:
    channels, height, width = teacher.latent_shape
    if config.cache.resolution:
        height = width = config.cache.resolution // teacher.pixels_per_latent
        if config.cache.resolution % teacher.pixels_per_latent:
            raise UserError(
                f"cache.resolution: is {config.cache.resolution}, expected a multiple of {teacher.pixels_per_latent}"
            )
    return [channels, height, width]
