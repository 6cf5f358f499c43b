"""Writes in a folder of transformers 5 what transformers 4 needs: names of tensors, and files of tokenizers.

transformers 5 reads both forms. transformers 4 would take a text encoder whose names it does not know for one without
weights, and fill it with random numbers.
"""

import json
from pathlib import Path

from safetensors.torch import save_file

from randcond.model_zoo.checkpoints.diffusers_folder import read_object
from randcond.model_zoo.checkpoints.part_copy import read_tensors
from randcond.model_zoo.checkpoints.weight_files import weight_files

_TEXT_MODEL = "text_model."  # the module of CLIPTextModel that transformers 5 does without
_WITHOUT = ("embeddings.", "encoder.", "final_layer_norm.")


def for_older_libraries(folder: Path) -> None:
    """Makes a pipeline's folder one that transformers 4 loads as well. Changes no value and no token.

    Does nothing if the folder has this form already. Raises UserError naming a file that is damaged.
    """
    for part in sorted(folder.glob("text_encoder*")):
        _name_tensors(part)
    for part in sorted(folder.glob("tokenizer*")):
        _write_vocabulary(part)


def _name_tensors(part: Path) -> None:
    """Gives the tensors of a CLIP text encoder the names that both versions know."""
    if read_object(part / "config.json").get("model_type") != "clip_text_model":
        return
    for path in weight_files(part):
        tensors, metadata = read_tensors(path)
        if any(name.startswith(_WITHOUT) for name in tensors):
            temporary = path.with_suffix(".part")
            save_file({_named(name): value for name, value in tensors.items()}, temporary, metadata)
            temporary.replace(path)
    for path in part.glob("*.safetensors.index.json"):
        index = read_object(path)
        names = {_named(name): file for name, file in index.get("weight_map", {}).items()}
        if names != index.get("weight_map"):
            path.write_text(json.dumps({**index, "weight_map": names}, indent=2) + "\n", encoding="utf-8")


def _named(tensor: str) -> str:
    return f"{_TEXT_MODEL}{tensor}" if tensor.startswith(_WITHOUT) else tensor


def _write_vocabulary(part: Path) -> None:
    """Writes the vocabulary and the merges of a CLIP tokenizer that has only a tokenizer.json as files of their own."""
    if not (part / "tokenizer.json").is_file() or (part / "vocab.json").is_file():
        return
    whole = read_object(part / "tokenizer.json")
    model = whole.get("model", {})
    if model.get("type") != "BPE":
        return
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    added = {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
    added = {token: number for token, number in added.items() if token not in model["vocab"]}
    (part / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    if added:
        (part / "added_tokens.json").write_text(json.dumps(added, ensure_ascii=False, indent=2), encoding="utf-8")
