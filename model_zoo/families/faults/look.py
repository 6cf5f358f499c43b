"""Looks at a diffusers folder without loading weights: can it be a teacher, and if not, why?

In training a teacher is shown what its own pipeline shows it in drawing. A folder for which that can't be repeated
exactly is refused here, by file and key, before any work.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import check_files, loading, read_object
from randcond.model_zoo.checkpoints.hub import is_hub_id
from randcond.model_zoo.checkpoints.schedule import process_of, stored_scheduler
from randcond.model_zoo.checkpoints.tokenizers import Tokenizer
from randcond.model_zoo.checkpoints.weight_files import weight_faults
from randcond.model_zoo.families.base.family import default_length
from randcond.model_zoo.families.registry import family_of_folder, pipeline_of

_PROBES = ["", "a red cat", "Naïve façade №5 — 猫, 🐈!", "one two three " * 100]  # tokenizers may differ on these


def check_teacher(path: Path | str) -> None:
    """Raises UserError with one line per reason why a folder can't be a teacher.

    Loads no weights. Does nothing for a hub id, because its files may not be here yet.
    """
    if is_hub_id(path):
        return
    if faults := list(dict.fromkeys(teacher_faults(Path(path)))):
        raise UserError("\n".join(faults))


def check_configurations(folder: Path) -> None:
    """Raises UserError with one line per fault of a folder's configurations. Looks at no tokenizers and weights."""
    if faults := list(family_of_folder(folder).faults(folder, _parts(folder))):
        raise UserError("\n".join(faults))


def teacher_faults(folder: Path) -> Iterator[str]:
    """Yields one line per reason why a folder can't be a teacher, naming file and key. Loads no weights."""
    if is_hub_id(folder):
        yield f"{folder}: is no folder here; the model of a hub id is looked at when it is downloaded"
        return
    if not (folder / "model_index.json").is_file():
        yield f"no teacher at {folder}: expected a diffusers folder with a model_index.json, or a hub id (owner/name)"
        return
    try:
        parts = _parts(folder)
    except UserError as error:
        yield str(error)
        return
    yield from family_of_folder(folder).faults(folder, parts)
    yield from _tokenizer_faults(folder, parts)
    for part, network in _networks(folder, parts):
        yield from weight_faults(folder / part, network)


def _parts(folder: Path) -> list[str]:
    """Returns the parts that a teacher is loaded from.

    Raises UserError if pipeline or part is of another class, a file is damaged, or the noise schedule does not suit.
    """
    family = family_of_folder(folder)
    check_files(folder)
    process_of(stored_scheduler(folder), folder, family.flow)
    index = read_object(folder / "model_index.json")
    parts = family.parts(index)
    for part in parts:
        entry = index.get(part)
        library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        expected_library = "diffusers" if part in (family.part, "vae") else "transformers"
        if name not in family.classes[part] or library != expected_library:
            expected = " or ".join(family.classes[part])
            raise UserError(f"{folder}/model_index.json: {part} is {entry}, expected {expected} of {expected_library}")
        if not (folder / part).is_dir():
            without = (
                f", or set {' and '.join(family.optional)} there to [null, null]" if part in family.optional else ""
            )
            raise UserError(f"{folder / part}: is missing, although model_index.json names it; copy it again{without}")
    return parts


def _tokenizer_faults(folder: Path, parts: list[str]) -> Iterator[str]:
    """Yields where token ids differ from those of the pipeline, or don't fit the text encoder."""
    index = read_object(folder / "model_index.json")
    pipeline, family = pipeline_of(folder)
    for text_part in family.text:
        if text_part.tokenizer not in parts:
            continue
        where, default = folder / text_part.tokenizer, default_length(pipeline) if text_part.is_open else None
        try:
            with loading(where):
                kind = getattr(transformers, index[text_part.tokenizer][1])
                tokenizer = kind.from_pretrained(where, local_files_only=True)
                encoder = getattr(transformers, index[text_part.encoder][1])
                text = encoder.config_class(**read_object(folder / text_part.encoder / "config.json"))
            ours = Tokenizer(tokenizer, str(where), default, text_part.prepare)
        except UserError as error:
            yield str(error)
            continue
        length = default or tokenizer.model_max_length
        positions = getattr(text, "max_position_embeddings", length)  # T5 has relative positions
        if length > positions:
            yield (
                f"{where}/tokenizer_config.json: model_max_length is {length}, but the text encoder has "
                f"{positions} positions"
            )
        if len(tokenizer) > text.vocab_size:
            yield f"{where}: has {len(tokenizer)} tokens, but the text encoder knows {text.vocab_size}"
        prepare = text_part.prepare
        probes = [prepare(tokenizer, probe) for probe in _PROBES] if prepare else _PROBES
        theirs = tokenizer(probes, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        if not torch.equal(ours(_PROBES), theirs.input_ids):
            yield f"{where}: encodes captions differently from its tokenizer.json; save it again with transformers"


def _networks(folder: Path, parts: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yields each network of a folder on the meta device; leaves out one whose configuration is wrong."""
    index, family = read_object(folder / "model_index.json"), family_of_folder(folder)
    for part in parts:
        library, name = index[part]
        if part.startswith("tokenizer"):
            continue
        try:
            with torch.device("meta"), loading(folder / part):
                stored = read_object(folder / part / "config.json")
                if part == family.part:
                    network = family.model.from_config(stored)
                elif library == "transformers":
                    network = _of_transformers(name, stored)
                else:
                    network = getattr(diffusers, name).from_config(stored)
        except UserError:
            continue  # faults() has named it
        yield part, network


def _of_transformers(name: str, stored: dict[str, Any]) -> nn.Module:
    kind = getattr(transformers, name)
    return kind(kind.config_class(**stored))
