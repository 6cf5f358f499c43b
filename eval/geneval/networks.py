"""GenEval's networks: Mask2Former finds the objects of an image, CLIP tells their colours.

In: images uint8 [n, 3, H, W]. Out: objects by name, and the colours of objects.

GenEval uses mmdetection's Mask2Former (Swin-S, COCO). Its weights are a pickle and need mmdetection, which is not made
for current versions of torch. Here it is Mask2Former of transformers: the same network, trained by its own authors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from randcond.eval.features.network_weights import TRANSFORMERS_FILES, fingerprint, is_path, load_network, model_folder
from randcond.eval.features.open_clip_models import CLIP_FILES, LOCAL, OpenClip, load_open_clip
from randcond.eval.geneval.prompts import COLOURS, OBJECTS
from randcond.eval.geneval.rules import CONFIDENCE, Found
from randcond.eval.images.protocol_images import from_picture, to_picture
from randcond.launch.errors import UserError

# Stored with the scores and part of their identity: another text makes existing scores invalid.
NOTE = (
    "objects from Mask2Former of transformers, not from mmdetection's weights: a substitute; compare these scores with "
    "each other, and with published ones with care"
)
FILES = (*TRANSFORMERS_FILES, "preprocessor_config.json")
AT_ONCE = 4  # images that the detector reads at once; each takes 0.7 GB
GREY = "#999"  # of the background of an object whose colour is asked for
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


@dataclass
class GenEvalNetworks:
    """The networks in eval mode and fp32, and their identity."""

    detector: Any
    processor: Any
    clip: OpenClip
    facts: dict[str, str]

    @torch.no_grad()
    def objects(self, images: Tensor) -> list[dict[str, list[Found]]]:
        """Returns the objects in images uint8 [n, 3, H, W] by name, the most confident first."""
        found: list[dict[str, list[Found]]] = []
        for some in images.split(AT_ONCE):
            pictures = [to_picture(image) for image in some]
            inputs = self.processor(images=pictures, return_tensors="pt").to(self.detector.device)
            results = self.processor.post_process_instance_segmentation(
                self.detector(**inputs),
                threshold=CONFIDENCE,
                target_sizes=[tuple(some.shape[-2:])] * len(some),
                return_binary_maps=True,
            )
            found += map(_by_name, results)
        return found

    def colours(self, image: Tensor, found: Sequence[Found], name: str) -> list[str]:
        """Returns the colour of each object of a kind in an image uint8 [3, H, W]: the nearest one to CLIP."""
        picture = to_picture(image)
        blank = Image.new("RGB", picture.size, color=GREY)
        crops = []
        for each in found:
            mask = Image.fromarray(each.mask.numpy().astype("uint8") * 255)
            crops.append(from_picture(Image.composite(picture, blank, mask).crop(each.box)))
        return self.nearest_colours(crops, name)

    @torch.no_grad()
    def nearest_colours(self, crops: Sequence[Tensor], name: str) -> list[str]:
        """Returns the colour that is nearest to each image uint8 [3, h, w] of an object of a kind."""
        pixels = torch.cat([self.clip.pixels(crop[None]) for crop in crops])
        encoded = self.clip.model.encode_image(pixels, normalize=True)  # [n, d]
        return [COLOURS[number] for number in (encoded @ self._classifier(name)).argmax(dim=1).tolist()]

    def _classifier(self, name: str) -> Tensor:
        """Returns the normalised mean embedding of the templates of each colour [d, colours]."""
        columns = []
        for colour in COLOURS:
            texts = [template.format(colour=colour, name=name) for template in TEMPLATES]
            encoded = self.clip.model.encode_text(self.clip.tokenize(texts).to(self.clip.device), normalize=True)
            columns.append(torch.nn.functional.normalize(encoded.mean(dim=0), dim=0))
        return torch.stack(columns, dim=1)


def _by_name(result: dict[str, Any]) -> dict[str, list[Found]]:
    """Returns the objects of one image by name. A box is that of the mask."""
    found: dict[str, list[Found]] = {}
    segments = result["segments_info"]
    for segment, mask in zip(segments, result["segmentation"] if segments else [], strict=True):
        present = mask.bool().cpu()
        rows, columns = present.any(dim=1).nonzero(), present.any(dim=0).nonzero()
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        found.setdefault(OBJECTS[segment["label_id"]], []).append(Found(segment["score"], box, present))
    return {name: sorted(objects, key=lambda each: -each.confidence) for name, objects in found.items()}


def load_geneval_networks(detector: str, clip: str, device: torch.device | str) -> GenEvalNetworks:
    """Loads the networks from folders or hub ids.

    Raises UserError naming the key if one is missing, of another kind, or was not trained on COCO's 80 classes.
    """
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

    try:
        folder = model_folder(detector, FILES)
        network, processor = load_network(
            Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil, folder, ("mask2former",)
        )
    except UserError as error:
        raise UserError(f"eval.geneval.detector: {error}") from None
    if (classes := network.config.num_labels) != len(OBJECTS):
        raise UserError(f"eval.geneval.detector: {detector} has {classes} classes, expected the {len(OBJECTS)} of COCO")
    try:
        clip_folder = model_folder(clip, CLIP_FILES)
    except UserError as error:
        raise UserError(f"eval.geneval.clip: {error}") from None
    model = load_open_clip(f"eval.geneval.clip: {clip}", f"{LOCAL}{clip_folder}", None, device)
    facts = {
        "detector": f"{detector} {fingerprint(folder)}",
        "clip": f"{clip} {fingerprint(clip_folder)}",
        "note": NOTE,
    }
    return GenEvalNetworks(network.to(device), processor, model, facts)


def check_geneval_networks(detector: str, clip: str) -> None:
    """Raises UserError naming the key if a local folder lacks files. Downloads and loads nothing."""
    for key, source, files in (("detector", detector, FILES), ("clip", clip, CLIP_FILES)):
        if Path(source).is_dir() and (missing := [file for file in files if not (Path(source) / file).is_file()]):
            raise UserError(f"eval.geneval.{key}: {source} has no {', '.join(missing)}")
        if is_path(source) and not Path(source).is_dir():
            raise UserError(f"eval.geneval.{key}: there is no folder {source}")
