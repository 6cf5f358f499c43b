"""Finds the two objects of a spatial prompt in an image: an open-vocabulary detector, where T2I-CompBench has UniDet.

In: images uint8 [n, 3, H, W] and the objects to look for in each. Out: each object's surest box, in pixels, or None.

UniDet's weights are a pickle and its code needs detectron2, so the default is OWLv2: it takes each object as a query of
its own and says which one a box answers, where Grounding DINO matches boxes to spans of one joined sentence. Its
published folder holds safetensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from randcond.eval.compbench.spatial import Box
from randcond.eval.scores.network_weights import load_network

NOTE = (
    "boxes from an open-vocabulary detector asked for the prompt's two nouns, not from UniDet with its fixed classes "
    "and confidences from 0.5: compare spatial and complex scores with each other, not with published ones"
)
# Least confidence of a box: a choice between the library's 0.1 and UniDet's 0.5, not calibrated on anything.
THRESHOLD = 0.2
FAMILIES = ("owlv2", "owlvit")  # whose boxes say which query they answer


class Detector(Protocol):
    """What finds objects; another one may take the default's place."""

    def __call__(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[list[Box | None]]:
        """For each image uint8 [3, H, W] the surest box of each of its names, in its pixels, None where not found."""
        ...


@dataclass(frozen=True)
class OpenVocabulary:
    """OWLv2 (or OWL-ViT) of transformers in eval mode, as a Detector; `batch` images are looked at together."""

    model: Any
    processor: Any
    threshold: float
    batch: int

    def __call__(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[list[Box | None]]:
        """As the protocol; a box belongs to the one name that fits it best."""
        found: list[dict[str, Box]] = [{} for _ in names]
        # The library pads to the longest list with blanks that could win a box: only lists of one length go together.
        for length in sorted({len(own) for own in names} - {0}):
            rows = [row for row, own in enumerate(names) if len(own) == length]
            for start in range(0, len(rows), self.batch):
                part = rows[start : start + self.batch]
                for row, boxes in zip(part, self._find(images[part], [names[row] for row in part]), strict=True):
                    found[row] = boxes
        return [[boxes.get(name) for name in own] for own, boxes in zip(names, found, strict=True)]

    @torch.inference_mode()
    def _find(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[dict[str, Box]]:
        queries = [[f"a photo of a {name}" for name in own] for own in names]
        inputs = self.processor(text=queries, images=list(images), return_tensors="pt").to(self.model.device)
        sizes = torch.tensor([tuple(images.shape[-2:])] * len(images))
        answers = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), threshold=self.threshold, target_sizes=sizes, text_labels=names
        )
        return [_surest(answer) for answer in answers]


def load_detector(folder: Path, device: torch.device | str, batch: int, threshold: float = THRESHOLD) -> OpenVocabulary:
    """Loads OWLv2 or OWL-ViT from a transformers folder, in fp32.

    Raises UserError naming a folder that holds another model.
    """
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model, processor = load_network(AutoModelForZeroShotObjectDetection, AutoProcessor, folder, FAMILIES)
    return OpenVocabulary(model.to(device), processor, threshold, batch)


def _surest(answer: dict[str, Any]) -> dict[str, Box]:
    best: dict[str, Box] = {}
    for score, box, name in zip(
        answer["scores"].tolist(), answer["boxes"].tolist(), answer["text_labels"], strict=True
    ):
        if name not in best or score > best[name].confidence:
            best[name] = Box(score, *box)
    return best
