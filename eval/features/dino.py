"""DINOv2: the features of FD-DINOv2 and DINO-MMD."""

import numpy as np
import torch
from torch import Tensor

from randcond.eval.features.network_weights import (
    TRANSFORMERS_FILES,
    load_network,
    model_folder,
    settings_fingerprint,
    tensors_fingerprint,
)
from randcond.eval.images.extractor import Extractor, Features
from randcond.eval.images.protocol_images import to_picture
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError


def load_dino(ev: Eval, device: torch.device | str) -> Extractor:
    """DINOv2's normalised class token, of the image resized to 224 (Pillow, bicubic): feature dino [n, d]."""
    from transformers import AutoModel

    try:
        folder = model_folder(ev.dino, TRANSFORMERS_FILES)
        model, _ = load_network(AutoModel, None, folder, ("dinov2", "dinov2_with_registers"))
    except UserError as error:
        raise UserError(f"eval.dino: {error}") from None
    model.to(device).eval().requires_grad_(False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Features:
        resized = [np.array(to_picture(image).resize((224, 224))) for image in images]
        pixels = (torch.from_numpy(np.stack(resized)) / 255 - mean) / std  # [n, 224, 224, 3]
        return {"dino": model(pixels.permute(0, 3, 1, 2).to(device)).pooler_output.float().cpu()}

    return Extractor(
        f"dinov2 {settings_fingerprint(folder)} {tensors_fingerprint(model)}", model.config.hidden_size, read
    )
