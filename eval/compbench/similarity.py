"""CLIP's image-text cosine (non-spatial; the action part of complex): OpenAI's ViT-B/32, the raw cosine in [-1, 1].

In: images uint8 [n, 3, H, W] and one text each. Out: cosines [n]; nothing is scaled by 100 or cut at 0.
By open_clip: its folder of these weights on the hub has safetensors, where OpenAI's own are a script and pickles.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from randcond.eval.images.protocol_images import to_picture
from randcond.eval.scores.network_weights import first_line
from randcond.launch.errors import UserError

CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")


@dataclass(frozen=True)
class Clip:
    """A CLIP of open_clip in eval mode, with its own preprocessing and tokenizer."""

    model: Any
    preprocess: Any
    tokenize: Any
    device: torch.device | str


def load_clip(folder: Path, device: torch.device | str) -> Clip:
    """Loads open_clip's folder, in fp32.

    Raises UserError naming a folder that does not load.
    """
    import open_clip

    name = f"local-dir:{folder}"
    try:
        with redirect_stderr(io.StringIO()):
            model, preprocess = open_clip.create_model_from_pretrained(name, precision="fp32", device=device)
        tokenize = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: no CLIP that loads ({first_line(error)})") from None
    model.eval().requires_grad_(False)
    return Clip(model, preprocess, tokenize, device)


@torch.inference_mode()
def cosines(clip: Clip, images: Tensor, texts: Sequence[str], batch: int) -> Tensor:
    """Cosine of each image uint8 [n, 3, H, W] and its text, float64 [n], `batch` at a time."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = torch.stack([clip.preprocess(to_picture(image)) for image in images[start : start + batch]])
        seen = clip.model.encode_image(pixels.to(clip.device), normalize=True)  # [n, d]
        said = clip.model.encode_text(clip.tokenize(list(texts[start : start + batch])).to(clip.device), normalize=True)
        parts.append((seen.double() * said.double()).sum(dim=1).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
