"""Makes scoring networks with random weights in the published formats.

Inception has its full size. Its batch norms are fitted on images, so that features vary and the Inception score is
above 1.5. The other networks are smaller than the published ones.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from imscore.imreward.bert import BertModel
from imscore.imreward.model import MLP, ImageReward
from imscore.imreward.vit import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from randcond.data.digits.world import load_glyphs, sample_images
from randcond.eval.images.protocol_images import to_picture
from randcond.launch.config.paths import PACKAGE
from randcond.model_zoo.sampler import to_bytes


def digit_images(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Returns images of coloured handwritten digits, uint8 [n, 3, side, side]."""
    glyphs, labels = load_glyphs("held_out")
    images, _ = sample_images(glyphs, labels, count, seed=seed)
    if side != 32:
        images = nn.functional.interpolate(images, size=(side, side), mode="bicubic").clamp(-1, 1)
    return to_bytes(images)


def save_pictures(folder: Path, images: Tensor, kind: str = "png") -> Path:
    """Saves each image in a file of its own; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        to_picture(image).save(folder / f"{number:05d}.{kind}")
    return folder


def inception_weights(path: Path, images: Tensor) -> Path:
    """Saves TF Inception v3 (1008 classes) with random weights, in the format of the suffix; returns `path`.

    images: the images whose statistics its batch norms have, uint8 [n, 3, H, W].
    """
    state = _inception(images.shape, images.numpy().tobytes())
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@cache  # takes seconds
def _inception(shape: torch.Size, images: bytes) -> dict[str, Tensor]:
    """Returns the tensors of TF Inception v3. `shape` and `images`: uint8 [n, 3, H, W]."""
    pixels = torch.frombuffer(bytearray(images), dtype=torch.uint8).view(shape)
    torch.manual_seed(0)
    with patch.object(nn.Module, "load_state_dict"), patch("torch.load"):  # its constructor loads weights
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["logits_unbiased"], feature_extractor_weights_path="none"
        )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # average over all batches
            module.train()
    with torch.no_grad():
        for part in pixels.split(16):
            network(part)
        network.eval()
        logits = torch.cat([network(part)[0] for part in pixels.split(16)])
        centred = logits - logits.mean(dim=0)
        network.fc.weight *= 2.0 / centred.std()  # so that the predicted classes differ between images
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def clip_folder(folder: Path) -> Path:
    """Saves a small open_clip model in the format that `local-dir:` loads; returns `folder`."""
    torch.manual_seed(0)
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    folder.mkdir(parents=True, exist_ok=True)
    model = open_clip.model.CLIP(**model_cfg)
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    settings = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def dino_folder(folder: Path) -> Path:
    """Saves a small DINOv2 in the format of transformers; returns `folder`."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def imagereward_weights(path: Path, vocabulary: int) -> Path:
    """Saves a small ImageReward in the format of its own file; returns `path`. vocabulary: tokens, with BLIP's two."""
    torch.manual_seed(0)
    model = small_imagereward(vocabulary)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if "position_ids" not in name}
    tensors["blip.vision_proj.weight"] = torch.zeros(3, 3)  # the real file has more than scores need
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def small_imagereward(vocabulary: int) -> Any:
    """Returns imscore's ImageReward in a smaller size, with random weights and without a tokenizer."""
    blip = nn.Module()
    blip.visual_encoder = VisionTransformer(32, 8, embed_dim=128, depth=2, num_heads=2)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=64,
        encoder_width=128,
        add_cross_attention=True,
    )
    blip.text_encoder = BertModel(config=config)
    with patch("imscore.imreward.model.BLIP", lambda image_size: blip), patch("imscore.imreward.model.MLP") as mlp:
        mlp.return_value = MLP(128)
        model = ImageReward()
    nn.init.normal_(blip.visual_encoder.pos_embed)
    return model.eval()


def bert_folder(folder: Path, words: str) -> Path:
    """Saves BERT's tokenizer with a small vocabulary; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words.lower().split())]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return folder


def pickscore_folder(folder: Path) -> Path:
    """Saves a small CLIP of transformers with its processor, as PickScore is published; returns `folder`."""
    torch.manual_seed(0)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 128}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 49408, "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(PACKAGE / "data/digits/models/teacher", subfolder="tokenizer").save_pretrained(folder)
    return folder
