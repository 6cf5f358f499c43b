"""Fingerprints of model folders: hashes of their configuration and weight files."""

import hashlib
import os
import re
from pathlib import Path

# The embedded teacher, and what it was before its files had a form that transformers 4 reads too: caches and
# evaluations that were made with it then remain valid, because its values and tokens are the same.
_SAME_MODEL = {"35f07162b080bd8a": "e30313663e9483b3"}


def folder_fingerprint(folder: Path) -> str:
    """Returns the first 16 hex digits of a sha256 over the names and contents of a model's configurations and weights.

    Model cards, safety checkers, feature extractors and weight variants (fp16, bf16, non_ema) are left out, because
    they do not change the images that the model generates. So is the form of the embedded teacher.
    """
    digest = hashlib.sha256()
    parts = [path for path in folder.glob("*/*") if path.suffix in {".json", ".txt", ".jinja", ".safetensors"}]
    # SentencePiece's vocabulary is read only where there is no tokenizer.json.
    parts += [path for path in folder.glob("*/*.model") if not path.with_name("tokenizer.json").is_file()]
    for path in sorted([*parts, folder / "model_index.json", *folder.glob("*.safetensors")]):
        unused = path.parent.name in {"safety_checker", "feature_extractor"} or re.search(
            r"\.(fp16|bf16|non_ema)[.-]", path.name
        )
        if path.is_file() and not unused:
            digest.update(os.fsencode(path.relative_to(folder)))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    found = digest.hexdigest()[:16]
    return _SAME_MODEL.get(found, found)
