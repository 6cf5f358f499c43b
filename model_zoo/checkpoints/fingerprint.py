"""Fingerprints of model folders: hashes of their configuration and weight files."""

import hashlib
import os
import re
from pathlib import Path


def folder_fingerprint(folder: Path) -> str:
    """Returns the first 16 hex digits of a sha256 over the names and contents of a model's configurations and weights.

    Model cards, safety checkers, feature extractors and weight variants (fp16, bf16, non_ema) are left out, because
    they do not change the images that the model generates.
    """
    digest = hashlib.sha256()
    parts = [path for path in folder.glob("*/*") if path.suffix in {".json", ".txt", ".safetensors"}]
    for path in sorted([*parts, folder / "model_index.json", *folder.glob("*.safetensors")]):
        unused = path.parent.name in {"safety_checker", "feature_extractor"} or re.search(
            r"\.(fp16|bf16|non_ema)[.-]", path.name
        )
        if path.is_file() and not unused:
            digest.update(os.fsencode(path.relative_to(folder)))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
