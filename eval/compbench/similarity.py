"""CLIP's cosine between image and text, by OpenAI's ViT-B/32 (non_spatial, and the action part of complex).

In: images uint8 [n, 3, H, W] and one text each. Out: cosines [n] in [-1, 1], not scaled by 100 and not clipped at 0.
The weights come from open_clip's folder on the hub, which has safetensors. OpenAI's own are TorchScript and pickles.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from randcond.eval.features.open_clip_models import OpenClip, load_open_clip


def load_clip(folder: Path, device: torch.device | str) -> OpenClip:
    """Loads a CLIP model from an open_clip folder, in fp32; raises UserError naming a folder that can't be loaded."""
    return load_open_clip(str(folder), f"local-dir:{folder}", None, device)


def cosines(clip: OpenClip, images: Tensor, texts: Sequence[str], batch: int) -> Tensor:
    """Returns the cosine between each image uint8 [n, 3, H, W] and its text, float64 [n], `batch` at a time."""
    parts = []
    for start in range(0, len(images), batch):
        some = slice(start, start + batch)
        image_features, text_features = clip.embeddings(images[some], list(texts[some]))
        parts.append((image_features.double() * text_features.double()).sum(dim=1).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
