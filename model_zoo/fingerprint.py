"""Which weights a folder holds: a hash of its configurations and weight files."""

import hashlib
import re
from pathlib import Path


def folder_fingerprint(folder: Path) -> str:
    """sha256 over names and contents of a model's configurations and weights (16 hex digits).

    Cards, safety checkers and copies in another precision don't count: they change nothing that is drawn.
    """
    digest = hashlib.sha256()
    parts = [path for path in folder.glob("*/*") if path.suffix in {".json", ".txt", ".safetensors"}]
    for path in sorted([*parts, folder / "model_index.json", *folder.glob("*.safetensors")]):
        unused = path.parent.name in {"safety_checker", "feature_extractor"} or re.search(
            r"\.(fp16|bf16|non_ema)[.-]", path.name
        )
        if path.is_file() and not unused:
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
