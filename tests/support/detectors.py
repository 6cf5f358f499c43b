"""Makes GenEval's detector with random weights, in the published format and a smaller size."""

from pathlib import Path

import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)


def mask2former_folder(folder: Path, classes: int = 80) -> Path:
    """Saves a small Mask2Former that finds objects in every image; returns `folder`."""
    torch.manual_seed(0)
    sides = {"image_size": 32, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**sides, out_features=["stage1", "stage2", "stage3", "stage4"]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        dim_feedforward=64,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=20,
        num_labels=classes,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        model.class_predictor.weight.mul_(30)  # so that some objects are sure
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
