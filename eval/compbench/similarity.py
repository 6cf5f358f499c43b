"""CLIP's cosine between image and text, by OpenAI's ViT-B/32 (non_spatial, and the action part of complex).

In: images uint8 [n, 3, H, W] and one text each. Out: cosines [n] in [-1, 1], not scaled by 100 and not clipped at 0.
The weights come from open_clip's folder on the hub, which has safetensors. OpenAI's own are TorchScript and pickles.
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
    """A CLIP model of open_clip in eval mode, with its preprocessing and tokenizer."""

    model: Any
    preprocess: Any
    tokenize: Any
    device: torch.device | str


def load_clip(folder: Path, device: torch.device | str) -> Clip:
    """Loads a CLIP model from an open_clip folder, in fp32; raises UserError naming a folder that can't be loaded."""
    import open_clip

    name = f"local-dir:{folder}"
    try:
        with redirect_stderr(io.StringIO()):
            model, preprocess = open_clip.create_model_from_pretrained(name, precision="fp32", device=device)
        tokenize = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: can't be loaded as a CLIP model of open_clip ({first_line(error)})") from None
    model.eval().requires_grad_(False)
    return Clip(model, preprocess, tokenize, device)


@torch.inference_mode()
def cosines(clip: Clip, images: Tensor, texts: Sequence[str], batch: int) -> Tensor:
    """Returns the cosine between each image uint8 [n, 3, H, W] and its text, float64 [n], `batch` at a time."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = torch.stack([clip.preprocess(to_picture(image)) for image in images[start : start + batch]])
        tokens = clip.tokenize(list(texts[start : start + batch]))
        image_features = clip.model.encode_image(pixels.to(clip.device), normalize=True)  # [n, d]
        text_features = clip.model.encode_text(tokens.to(clip.device), normalize=True)  # [n, d]
        parts.append((image_features.double() * text_features.double()).sum(dim=1).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
