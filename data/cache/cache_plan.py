"""The plan of a cache: everything that its latents depend on, and the captions that it was made for.

In: the experiment, the teacher, the captions of the sources. Out: plan.json and captions.arrow in the cache's folder. A
plan or captions that are damaged are restored from what else there is. The shards hold a hash of the plan.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from randcond.data.cache.latent_source import LatentSource, cache_identity, source_kind
from randcond.data.cache.shards import FORMAT, read_index
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.data.captions.source_identity import stored_without_secrets, write_again
from randcond.data.images.decode import READING
from randcond.launch.config.identity import absent_settings, identity_of
from randcond.launch.config.sections import Cache, Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import RESTORE, naming_full_disk, read_record, sha256, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import cpu_threads, rank
from randcond.model_zoo.sampler import sampler_dtype
from randcond.model_zoo.teacher import Teacher

Plan = dict[str, Any]
HASH = "plan_sha256"  # key of a plan from which secrets were taken: the hash that its shards hold
_RESTORE_MANIFEST = "restore it from a copy; the manifest of a part of another cache: `randcond cache subset` makes it"
_REMEDY = "To use it, restore these settings. To make another cache, give another paths.cache."


def stored_plan(folder: Path, sources: Sequence[str] = ()) -> Plan | None:
    """Returns the plan that the shards of a folder were made by, None if there is none yet.

    plan.json and manifest.json both hold it; if one is damaged or missing, the other counts. The plan of a subset is in
    its manifest, and has the key `subset_of`. What an older version left of passwords and queries of URLs is taken out
    of plan.json; the plan then keeps the hash that the shards hold. `sources`: the experiment's, see
    `stored_without_secrets`. Raises UserError if none of the files can be read.
    """
    plans: list[Plan] = []
    damages: dict[str, UserError] = {}
    for name, remedy in (("plan.json", RESTORE), ("manifest.json", _RESTORE_MANIFEST)):
        try:
            if (folder / name).is_file():
                plans.append(_without_secrets(folder / name, remedy, sources))
        except UserError as error:
            damages[name] = error
    if damages and not plans:
        raise next(iter(damages.values()))
    for name in damages if rank() == 0 else ():
        log.warning(f"cache: {folder / name} is damaged; it is written again")
    return plans[0] if plans else None


def _without_secrets(path: Path, remedy: str, sources: Sequence[str]) -> Plan:
    stored = read_record(path, "captions_sha256", remedy=remedy)
    plan = {key: value for key, value in stored.items() if key != "shards"}
    clean: Plan = stored_without_secrets(plan, sources)
    if clean != plan:
        clean[HASH] = plan_hash(plan)
        if path.name == "plan.json":  # the manifest is written at the end of the stage
            write_again(path, clean)
    return clean


def plan_hash(plan: Plan) -> str:
    """Returns the hash of a plan that its shards hold."""
    return plan.get(HASH) or hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def agreed_plan(config: Config, folder: Path, teacher: Teacher, source: LatentSource, shards: list[Path]) -> Plan:
    """Returns the plan of the cache in a folder, with plan.json and captions.arrow as it says.

    Writes them if the folder has none; writes captions.arrow again if it is damaged. Raises UserError if the folder
    contains a cache with other settings or captions.
    """
    stored = stored_plan(folder, config.cache.captions)
    digest = restore_captions(folder, source.captions, stored, any(map(Path.is_file, shards)))
    plan = new_plan(config, teacher, digest, source.facts)
    if stored is None:
        _refuse_foreign(shards, plan_hash(plan))
    else:
        absent = absent_settings(Cache, "cache", source_kind(config), "shards") | {"compile": None, "reading": READING}
        captions = {"captions_sha256": stored["captions_sha256"]}  # compared below
        check_matches(stored, {**plan, **captions}, f"the cache at {folder}", _REMEDY, absent)
        if digest != stored["captions_sha256"]:
            raise UserError(
                f"{folder / 'captions.arrow'}: is missing or damaged, and the sources give other captions now than "
                f"when the cache was made; restore the sources, or captions.arrow from a copy; the shards stay as "
                f"they are"
            )
        plan = stored  # may have fewer keys, if an older version wrote it: the shards contain a hash of it
    if list(Captions(folder / "captions.arrow")) != source.captions:
        raise UserError(f"the cache at {folder}: its captions differ from the captions in its sources now. {_REMEDY}")
    if stored is None or not _is_stored(folder / "plan.json", plan):
        write_json(folder / "plan.json", plan)
    return plan


def _is_stored(path: Path, plan: Plan) -> bool:
    try:
        return path.is_file() and read_record(path) == plan
    except UserError:
        return False


def _refuse_foreign(shards: list[Path], made_of: str) -> None:
    """Raises UserError if a folder without a plan has shards of another plan: they may have taken days to make."""
    for shard in shards:
        try:
            if not shard.is_file() or read_index(shard).made_of == made_of:
                continue
        except (UserError, FileNotFoundError):
            continue
        raise UserError(
            f"shard {shard}: belongs to a cache with other settings (teacher, sampler, captions, ...), and "
            f"{shard.parent} has no plan.json that names them; restore plan.json or manifest.json from a copy, or give "
            f"another paths.cache"
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


def new_plan(config: Config, teacher: Teacher, captions_hash: str, facts: dict[str, Any]) -> Plan:
    """Returns everything that the latents depend on. Two caches with the same plan contain the same latents.

    `captions_hash`: sha256 of captions.arrow. `facts`: the `facts` of the latent source.
    """
    cache = config.cache
    shards = identity_of(cache, "shards")
    shards.pop("compile")  # stored as None if nothing is compiled
    return {
        "format": FORMAT,
        "teacher": teacher.fingerprint,
        "captions": cache.size,
        "captions_sha256": captions_hash,
        **cache_identity(config),
        **facts,
        **shards,
        "compute_dtype": config.teacher.dtype,
        "sampler_dtype": sampler_dtype(teacher.pipe),
        "latent_shape": _latent_shape(config, teacher),
        "threads": cpu_threads(),
        "compile": None if cache.compile == "none" else cache.compile,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def _latent_shape(config: Config, teacher: Teacher) -> list[int]:
    channels, height, width = teacher.latent_shape
    if config.cache.images and config.cache.resolution:
        factor = teacher.resolution // height
        height = width = config.cache.resolution // factor
        if config.cache.resolution % factor:
            raise UserError(f"cache.resolution: is {config.cache.resolution}, expected a multiple of {factor}")
    return [channels, height, width]
