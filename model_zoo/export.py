"""Exports a trained student as a diffusers folder, and loads such folders.

The folder holds the student's denoiser and copies of the teacher's VAE, text encoders, tokenizers, scheduler and
feature extractor. The safety checker is left out. All weights are safetensors. `DiffusionPipeline.from_pretrained`
loads it without randcond, from diffusers 0.35 (FLUX.2: 0.37) and transformers 4.57 on. Only SLIM students need
`load_pipeline`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import (
    check_files,
    class_name,
    loading,
    read_object,
    remove_local_paths,
)
from randcond.model_zoo.checkpoints.part_copy import copy_part
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.families.registry import (
    FAMILIES,
    family_of,
    family_of_folder,
    load_options,
    pipeline_of,
    with_parts,
)
from randcond.model_zoo.importing.older_libraries import for_older_libraries
from randcond.model_zoo.students.slim import SlimUNet2DConditionModel

_SAFETY_CHECKER = "safety_checker"
Shapes = dict[str, tuple[int, ...]]
_CLASSES = {name: family.model for family in FAMILIES for name in family.classes[family.part]}
_CLASSES[SlimUNet2DConditionModel.__name__] = SlimUNet2DConditionModel


def denoiser_weights(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the denoiser's tensors from the state dict of a `TappedStudent`. The projectors are left out.

    Tensors keep their shapes. Names lose their first part, such as "unet.".
    """
    own = {name: tensor for name, tensor in trained.items() if not name.startswith("projectors.")}
    return {name.partition(".")[2]: tensor for name, tensor in own.items()}


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Returns the shape of each named tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def trained_student(like: ModelMixin, weights: dict[str, Tensor], dtype: torch.dtype) -> ModelMixin:
    """Returns a frozen denoiser in eval mode with the architecture of `like` and the given weights, in `dtype`.

    weights: fp32 tensors by name, with the shapes of the state dict of `like`. Buffers that are not among them, such as
    tables of positions, are those that the architecture computes.
    Raises UserError naming the first tensor that does not match the architecture.
    """
    with init_empty_weights(include_buffers=False):
        network = Architecture.of(like).build()
    computed = {name for name, _ in network.named_buffers()} - weights.keys()
    expected = {name: tensor for name, tensor in network.state_dict().items() if name not in computed}
    check_shapes(shapes(expected), shapes(weights), "the student's weights")
    network.load_state_dict(weights, assign=True, strict=False)
    return network.to(dtype).eval().requires_grad_(False)


def check_shapes(expected: Shapes, actual: Shapes, what: str) -> None:
    """Raises UserError if the names or shapes of tensors differ from the expected architecture.

    what: the file or weights that the message names. The message lists the first tensor of each kind of difference.
    """
    missing, unexpected = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
    reshaped = sorted(name for name in expected.keys() & actual.keys() if expected[name] != actual[name])
    if not (missing or unexpected or reshaped):
        return
    differences = [f"{len(missing)} tensors missing, first {missing[0]}"] if missing else []
    differences += [f"{len(unexpected)} unexpected tensors, first {unexpected[0]}"] if unexpected else []
    if reshaped:
        name = reshaped[0]
        differences.append(
            f"{len(reshaped)} tensors with another shape, first {name}: {actual[name]}, expected {expected[name]}"
        )
    raise UserError(
        f"{what}: the architecture differs from the one that student.rule gives for this teacher "
        f"({'; '.join(differences)}). Use the student.rule and teacher.path of the original training, "
        f"or another folder (paths.run, student.init)."
    )


def load_denoiser(folder: Path, dtype: torch.dtype) -> ModelMixin:
    """Loads the denoiser of an exported student or a teacher from its folder, in eval mode, safetensors only.

    config.json names the class. Raises UserError if that class is not one of a family or SLIM's.
    """
    name = class_name(folder / "config.json")
    if name not in _CLASSES:
        raise UserError(f"{folder}/config.json: _class_name is {name}, expected {' or '.join(_CLASSES)}")
    with loading(folder):
        return _CLASSES[name].from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()


def load_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Loads the pipeline of a teacher or exported student, including SLIM students.

    Raises UserError naming a file that is missing or damaged.
    """
    pipeline, family = pipeline_of(folder)
    check_files(folder)
    with loading(folder):
        options = {**load_options(folder), family.part: None}
        rest = pipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options)
        return with_parts(rest, **{family.part: load_denoiser(folder / family.part, dtype)})


def export_student(folder: Path, denoiser: ModelMixin, teacher: Path, card: str) -> None:
    """Writes a student's pipeline into `folder`, with the model card `card` as README.md.

    The denoiser is the student's, in its dtype. All other parts are copied from the teacher's folder as they are.
    """
    part = family_of(type(denoiser)).part
    index = _copy_parts(teacher, folder)
    denoiser.save_pretrained(folder / part, safe_serialization=True)
    library = type(denoiser).__module__
    index[part] = ["diffusers" if library.startswith("diffusers.") else library, type(denoiser).__name__]
    _finish(folder, index, card)


def copy_student(folder: Path, student: Path, card: str, dtype: torch.dtype | None = None) -> None:
    """Writes an exported student into `folder` once more, with another model card. Loads no network.

    `dtype`: of all weights; None: as they are. Raises UserError naming a tensor whose values `dtype` can't hold.
    """
    part = family_of_folder(student).part
    index = _copy_parts(student, folder, dtype)
    copy_part(student / part, folder / part, dtype)
    _finish(folder, index, card)


def licence_files(folder: Path) -> list[str]:
    """Returns the names of the licence texts of a pipeline's folder."""
    return sorted(path.name for path in folder.glob("LICENSE*") if path.is_file())


def _copy_parts(source: Path, folder: Path, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Copies everything but the denoiser and the safety checker. Returns the contents of model_index.json."""
    denoiser = family_of_folder(source).part
    index = read_object(source / "model_index.json")
    folder.mkdir(parents=True, exist_ok=True)
    for name, entry in index.items():
        if name == denoiser or not (isinstance(entry, list) and len(entry) == 2):
            continue
        if name == _SAFETY_CHECKER or not (source / name).is_dir():
            index[name] = [None, None]
        elif entry[0] is not None:
            copy_part(source / name, folder / name, dtype)
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    for name in licence_files(source):
        shutil.copyfile(source / name, folder / name)
    return index


def _finish(folder: Path, index: dict[str, Any], card: str) -> None:
    """Writes the index and the card, and makes the parts loadable by every version of the libraries."""
    for_older_libraries(folder)
    for path in folder.glob("text_encoder*/config.json"):
        _load_in_fp32(path)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    remove_local_paths([*folder.glob("*.json"), *folder.glob("*/*.json")])
    (folder / "README.md").write_text(card, encoding="utf-8")


def _load_in_fp32(path: Path) -> None:
    """Makes fp32 the dtype in which transformers 5 loads a text encoder if none is asked for.

    diffusers loads the other parts in fp32 then, whatever they are stored in, and a pipeline can't draw in two dtypes.
    """
    settings = read_object(path)
    stated = settings.pop("torch_dtype", None)  # its name in transformers 4
    if "float32" not in (stated, settings.get("dtype")):
        settings["dtype"] = "float32"
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
