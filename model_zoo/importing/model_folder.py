"""Makes a plain folder of a diffusers folder whose weights have variants or are pickled, also with another denoiser."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import read_object
from randcond.model_zoo.checkpoints.part_copy import is_configuration
from randcond.model_zoo.checkpoints.weight_files import SAFE_NAME
from randcond.model_zoo.families.registry import family_of_folder
from randcond.model_zoo.importing.unpickle import tensors_of_pickle

_UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}  # parts that a teacher does not have
DENOISERS = ("unet", "transformer")
_PARTS = (*DENOISERS, "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
_VARIANTS = ("", "fp32", "bf16", "fp16")  # in this order: the most exact first
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?(?P<shard>-\d{5}-of-\d{5})?"
    r"(?:\.(?P<late>fp16|bf16|fp32))?\.(?P<suffix>safetensors|bin)"
)


def import_folder(source: Path, target: Path) -> list[str]:
    """Writes the files of a diffusers folder to `target`: safetensors without variants. Returns a line per part.

    Weights keep their values and dtypes. Raises UserError naming the part that has no weights.
    """
    return _import_parts(source, target, {part: source / part for part in _PARTS})


def denoiser_folder(source: Path) -> Path | None:
    """Returns the folder of a denoiser that comes without a pipeline: `source`, or its unet or transformer."""
    if (source / "model_index.json").is_file():
        return None
    folders = (source, *(source / part for part in DENOISERS))
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def import_denoiser(denoiser: Path, pipeline: Path, target: Path) -> list[str]:
    """Writes the pipeline's files to `target`, as import_folder() does, with another denoiser. Returns a line per part.

    Raises UserError naming the folder whose weights or configuration don't suit.
    """
    family = family_of_folder(pipeline)
    own, mine = family.part, read_object(denoiser / "config.json").get("_class_name")
    if mine not in family.classes[own]:
        known = " or ".join(family.classes[own])
        raise UserError(
            f"{denoiser / 'config.json'}: _class_name is {mine}, but the denoiser of {pipeline} is a {known}"
        )
    said = _import_parts(pipeline, target, {part: pipeline / part for part in _PARTS} | {own: denoiser})
    shutil.copyfile(denoiser / "config.json", target / own / "config.json")
    index = read_object(target / "model_index.json")
    index[own] = ["diffusers", mine]  # older folders name an older class
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return said


def _import_parts(source: Path, target: Path, folders: dict[str, Path]) -> list[str]:
    """Writes the configurations of `source` and the weights of `folders` (part -> its folder) to `target`."""
    said = []
    shutil.copytree(source, target, ignore=_only_configurations, dirs_exist_ok=True)
    index = read_object(source / "model_index.json")
    for part in _UNUSED & index.keys():
        index[part] = [None, None]
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for part, folder in folders.items():
        if folder.is_dir():
            said.append(f"{part}: {_import_weights(folder, target / part)}")
    return said


def _only_configurations(folder: str, names: list[str]) -> list[str]:
    """Returns the names that are not copied: weights, unused parts, code, hidden files."""
    ignored = [name for name in names if name.startswith(".") or name in _UNUSED]
    return ignored + [name for name in names if not (Path(folder) / name).is_dir() and not is_configuration(name)]


def _import_weights(source: Path, target: Path) -> str:
    """Writes the weights of one part. Returns what they were."""
    found: dict[tuple[str, str], list[tuple[Path, re.Match[str]]]] = {}
    for path in sorted(source.iterdir()):
        if match := _WEIGHTS.fullmatch(path.name):
            variant = match["variant"] or match["late"] or ""
            found.setdefault((match["suffix"], variant), []).append((path, match))
    for variant in _VARIANTS:
        for suffix in ("safetensors", "bin"):
            if files := found.get((suffix, variant)):
                _write(files, target, suffix)
                return f"{len(files)} file{'s' if len(files) > 1 else ''}{f', {variant}' if variant else ''}, .{suffix}"
    others = ", ".join(path.name for path in sorted(source.iterdir()))
    raise UserError(f"{source}: has no weights that can be imported (.safetensors or .bin); it has {others}")


def _write(files: list[tuple[Path, re.Match[str]]], target: Path, suffix: str) -> None:
    names: dict[str, str] = {}  # tensor -> file
    diffusers = files[0][1]["stem"] == "diffusion_pytorch_model"
    stem = SAFE_NAME[diffusers]
    for path, match in files:
        name = f"{stem}{match['shard'] or ''}.safetensors"
        if suffix == "bin":
            tensors_of_pickle(path, target / name)
        else:
            shutil.copyfile(path, target / name)
        if match["shard"]:
            names |= dict.fromkeys(_tensor_names(target / name), name)
    if names:
        total = sum((target / name).stat().st_size for name in set(names.values()))
        index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": names}
        (target / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tensor_names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise UserError(f"{path.name}: damaged ({error}); download or copy it again") from None
