"""The extractors by name, and loading them.

In: images uint8 [n, 3, H, W] as the protocol gives them, and their captions. Out: features by name, fp32 [n, ...].
Every network comes from a published library and runs in eval mode and fp32. The judge is the exception: it is ours.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from randcond.eval.features.digits_judge import load_judge
from randcond.eval.features.dino import load_dino
from randcond.eval.features.inception import load_inception
from randcond.eval.features.network_weights import TRANSFORMERS_FILES, WEIGHT_SUFFIXES, is_path
from randcond.eval.features.open_clip_models import CLIP_FILES, LOCAL, load_clip, load_cmmd_clip, load_hps
from randcond.eval.features.preferences import BERT_FILES, PICKSCORE_FILES, load_imagereward, load_pickscore
from randcond.eval.images.extractor import Extractor
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError


@dataclass(frozen=True)
class ExtractorKind:
    """How an extractor is loaded, and what it needs."""

    load: Callable[[Eval, torch.device | str], Extractor]
    weights: dict[str, tuple[str, ...]]  # key of `eval:` that names a folder or hub id -> the files that it must hold


_TENSORS = ("model.safetensors",)
EXTRACTORS = {
    "inception": ExtractorKind(load_inception, {}),  # its weights are an input: check_evaluation() looks for them
    "clip": ExtractorKind(load_clip, {"clip": CLIP_FILES}),
    "dino": ExtractorKind(load_dino, {"dino": TRANSFORMERS_FILES}),
    "judge": ExtractorKind(load_judge, {}),
    "hps": ExtractorKind(load_hps, {"hps": _TENSORS}),
    "pickscore": ExtractorKind(load_pickscore, {"pickscore": PICKSCORE_FILES}),
    "imagereward": ExtractorKind(load_imagereward, {"imagereward": _TENSORS, "bert": BERT_FILES}),
    "cmmd-clip": ExtractorKind(load_cmmd_clip, {"cmmd": CLIP_FILES}),
}


def load_extractors(names: Iterable[str], ev: Eval, device: torch.device | str) -> dict[str, Extractor]:
    """Loads the named extractors with the weights of the `eval:` section.

    Raises UserError naming the key and the file if weights are missing or can't be loaded.
    """
    return {name: EXTRACTORS[name].load(ev, device) for name in names}


def check_weights(names: Iterable[str], ev: Eval) -> None:
    """Raises UserError naming the key if local weights of the named extractors are missing. Downloads nothing."""
    for name in names:
        for key, files in EXTRACTORS[name].weights.items():
            source: str = getattr(ev, key)
            if source.startswith(LOCAL):
                _check_files(f"eval.{key}", Path(source.removeprefix(LOCAL)), CLIP_FILES)
            elif Path(source).is_dir():
                _check_files(f"eval.{key}", Path(source), files)
            elif (Path(source).suffix in WEIGHT_SUFFIXES or is_path(source)) and not Path(source).is_file():
                raise UserError(f"eval.{key}: no weights at {source}")
        if name == "clip" and is_path(ev.clip_weights) and not Path(ev.clip_weights).is_file():
            raise UserError(f"eval.clip_weights: no weights at {ev.clip_weights}")


def _check_files(key: str, folder: Path, files: tuple[str, ...]) -> None:
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {folder}")
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise UserError(f"{key}: {folder} has no {', '.join(missing)}")
