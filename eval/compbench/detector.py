"""Finds the two objects of a spatial prompt in an image, with an open-vocabulary detector instead of UniDet.

In: images uint8 [n, 3, H, W] and the names of the objects to find in each. Out: for each object the box with the
highest confidence, in pixels, or None.

T2I-CompBench uses UniDet, whose weights are a pickle and whose code needs detectron2. The default here is OWLv2: it
takes each object as a separate query and tells which query a box answers. Grounding DINO would match boxes to spans of
one joined sentence. OWLv2's published folder has safetensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from randcond.eval.compbench.spatial import Box
from randcond.eval.features.network_weights import load_network

# Stored with the scores and part of their identity: another text makes existing scores invalid.
NOTE = (
    "boxes from an open-vocabulary detector asked for the prompt's two nouns, not from UniDet with its fixed classes "
    "and confidences from 0.5: compare spatial and complex scores with each other, not with published ones"
)
# Lowest confidence of a box. It lies between the library's 0.1 and UniDet's 0.5 and is not calibrated.
THRESHOLD = 0.2
FAMILIES = ("owlv2", "owlvit")  # model types whose boxes tell which query they answer


class Detector(Protocol):
    """A function that finds objects in images."""

    def __call__(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[list[Box | None]]:
        """Finds the named objects in images uint8 [n, 3, H, W]; names[i] belong to images[i].

        Returns for each image and name the box with the highest confidence, in pixels of the image, or None.
        """
        ...


@dataclass(frozen=True)
class OpenVocabulary:
    """OWLv2 or OWL-ViT of transformers in eval mode, as a Detector. It reads `batch` images at a time."""

    model: Any
    processor: Any
    threshold: float
    batch: int

    def __call__(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[list[Box | None]]:
        """Implements Detector. Each box belongs only to the name that it fits best."""
        boxes_by_image: list[dict[str, Box]] = [{} for _ in names]
        # The library pads name lists to equal length with blank queries, which could win a box. So only images with
        # equally many names are batched.
        for length in sorted({len(image_names) for image_names in names} - {0}):
            rows = [row for row, image_names in enumerate(names) if len(image_names) == length]
            for start in range(0, len(rows), self.batch):
                part = rows[start : start + self.batch]
                for row, boxes in zip(part, self._find(images[part], [names[row] for row in part]), strict=True):
                    boxes_by_image[row] = boxes
        return [
            [boxes.get(name) for name in image_names] for image_names, boxes in zip(names, boxes_by_image, strict=True)
        ]

    @torch.inference_mode()
    def _find(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[dict[str, Box]]:
        queries = [[f"a photo of a {name}" for name in image_names] for image_names in names]
        inputs = self.processor(text=queries, images=list(images), return_tensors="pt").to(self.model.device)
        sizes = torch.tensor([tuple(images.shape[-2:])] * len(images))
        detections = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), threshold=self.threshold, target_sizes=sizes, text_labels=names
        )
        return [_best_boxes(detection) for detection in detections]


def load_detector(folder: Path, device: torch.device | str, batch: int, threshold: float = THRESHOLD) -> OpenVocabulary:
    """Loads OWLv2 or OWL-ViT from a transformers folder, in fp32.

    Raises UserError naming a folder that holds another model.
    """
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model, processor = load_network(AutoModelForZeroShotObjectDetection, AutoProcessor, folder, FAMILIES)
    return OpenVocabulary(model.to(device), processor, threshold, batch)


def _best_boxes(detection: dict[str, Any]) -> dict[str, Box]:
    """Returns the box with the highest confidence for each name that was detected in one image."""
    best: dict[str, Box] = {}
    for score, box, name in zip(
        detection["scores"].tolist(), detection["boxes"].tolist(), detection["text_labels"], strict=True
    ):
        if name not in best or score > best[name].confidence:
            best[name] = Box(score, *box)
    return best
