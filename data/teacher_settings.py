"""Checks the settings of an experiment that must suit its teacher: samplers, sizes of images, the text.

Loads no weights and downloads nothing. Of a hub id only what is known of the published teachers is checked.
"""

from pathlib import Path

from randcond.launch.config.paths import resolve_path
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.config.sections import Teacher as Settings
from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.hub import is_hub_id
from randcond.model_zoo.checkpoints.hub_files import hub_file
from randcond.model_zoo.checkpoints.layouts import layout_of
from randcond.model_zoo.checkpoints.schedule import stored_scheduler
from randcond.model_zoo.families.base.family import Family
from randcond.model_zoo.networks import Networks, networks_of
from randcond.model_zoo.sampler import is_of_flow
from randcond.model_zoo.text_encoding.options import check_buckets


def check_settings(config: Config, *stages: str) -> Networks | None:
    """Raises UserError naming the key that does not suit the teacher. Returns what known_networks() does.

    stages: "cache", "eval" or both: those whose images are drawn. A teacher of an unknown kind is only scored, so only
    its sampler is checked.
    """
    path = resolve_path(config.teacher.path)
    here = (Path(path) / "model_index.json").is_file()
    networks = known_networks(path, ask=config.trains)
    if not networks and not here:
        return None  # a hub id of an unknown kind or out of reach, or nothing: loading says what is wrong
    family = networks.denoiser.family if networks else None
    if family:
        check_text(config.teacher, family)
    flow = family.flow if family else is_of_flow(stored_scheduler(Path(path)))
    drawn = {
        "cache": (None if config.cache.images else config.cache.sampler, config.cache.resolution),
        "eval": (protocol_of(config.eval).sampler, config.eval.resolution),
    }
    for stage in stages:
        sampler, pixels = drawn[stage]
        if flow and sampler not in (None, "teacher"):
            raise UserError(
                f"{stage}.sampler: {sampler} is for discrete betas, but the teacher was trained by flow matching; use "
                f"{stage}.sampler=teacher"
            )
        if networks and pixels is not None:
            check_side(f"{stage}.resolution", pixels, networks)
    return networks


def known_networks(path: Path | str, ask: bool = False) -> Networks | None:
    """Returns the configurations of a teacher's networks. None for a model of an unknown kind.

    `ask`: asks the hub for the configurations of a hub id that has no layout here, and raises errors as hub_file()
    does. Otherwise None for such an id.
    """
    of_hub = is_hub_id(path) and not layout_of(path)
    if of_hub and not ask:
        return None
    if of_hub:
        hub_file(path, "model_index.json")
    try:
        return networks_of(path if layout_of(path) else Path(path))
    except UserError:
        return None


def check_text(teacher: Settings, family: Family) -> None:
    """Raises UserError if captions can't be encoded as the teacher's settings say."""
    check_buckets(teacher.text_buckets, family, teacher.path)
    tokens = teacher.text_tokens
    if tokens is None:
        return
    if not any(part.is_open for part in family.text):
        raise UserError(
            f"teacher.text_tokens: is {tokens}, but the text of {family.name} has the length that its tokenizer says; "
            f"use teacher.text_tokens=null"
        )
    if tokens < 1 or (family.most_tokens and tokens > family.most_tokens):
        most = f"1 to {family.most_tokens}" if family.most_tokens else "1 or more"
        raise UserError(f"teacher.text_tokens: is {tokens}, expected {most}")


def check_side(key: str, pixels: int, networks: Networks) -> None:
    """Raises UserError naming the key if the denoiser can't take latents of images with sides of `pixels`."""
    step, most = networks.denoiser.family.sides(networks.denoiser.config)
    scale = networks.pixels_per_latent
    if pixels < 1 or pixels % (scale * step):
        patches = f", which the denoiser cuts into patches of {step} x {step}" if step > 1 else ""
        raise UserError(
            f"{key}: is {pixels}, expected a multiple of {scale * step}: a latent has one position for each square of "
            f"{scale} pixels{patches}"
        )
    if most and pixels > most * scale:
        raise UserError(f"{key}: is {pixels}, but the teacher takes images of {most * scale} pixels at most")
