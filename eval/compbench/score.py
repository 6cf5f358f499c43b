"""T2I-CompBench's score of each image (Table D), by the category of its prompt.

In: images uint8 [n, 3, H, W] at the size they are drawn at, and their prompts. Out: scores float64 [n], and the
networks that gave them. The score of a category is the mean over its images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from randcond.eval.compbench import nouns
from randcond.eval.compbench.attributes import IMAGE_SIZE, Blip, attribute_scores, load_blip
from randcond.eval.compbench.detector import NOTE, Detector, load_detector
from randcond.eval.compbench.prompts import ATTRIBUTES, CATEGORIES, COMPLEX_KINDS
from randcond.eval.compbench.similarity import cosines, load_clip
from randcond.eval.compbench.spatial import FRAME, Box, object_name, spatial_score
from randcond.eval.features.network_weights import TRANSFORMERS_FILES, fingerprint, model_folder
from randcond.eval.features.open_clip_models import CLIP_FILES, OpenClip
from randcond.launch.errors import UserError

NEEDS = {  # category -> the networks that score it
    **{category: {"spacy", "blip"} for category in ATTRIBUTES},
    "spatial": {"spacy", "detector"},
    "non_spatial": {"clip"},
    "complex": {"spacy", "blip", "detector", "clip"},
}


@dataclass
class Scorer:
    """The networks that some categories need. `facts` describes them and is stored with the scores."""

    blip: Blip | None = None
    clip: OpenClip | None = None
    detector: Detector | None = None
    nlp: Any = None  # a spaCy pipeline
    batch: int = 16
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        categories: Iterable[str],
        *,
        blip: str,
        clip: str,
        detector: str,
        spacy: str,
        device: torch.device | str = "cpu",
        batch: int = 16,
    ) -> "Scorer":
        """Loads the networks that the categories need, from folders or hub ids (`owner/name@revision`).

        `spacy` may also be the name of an installed package. Raises UserError naming an unknown category, or a model
        that is missing or can't be loaded.
        """
        needed: set[str] = set()
        for category in categories:
            if category not in NEEDS:
                raise UserError(f"T2I-CompBench has no category {category!r}; known: {', '.join(CATEGORIES)}")
            needed |= NEEDS[category]
        scorer = cls(batch=batch)
        # The texts of `facts` are part of the identity of the scores: another text makes existing scores invalid.
        if "spacy" in needed:
            folder = nouns.pipeline_folder(spacy)
            scorer.nlp = nouns.load_pipeline(folder)
            meta = scorer.nlp.meta
            scorer.facts["spacy"] = f"{meta['lang']}_{meta['name']} {meta['version']}, {fingerprint(folder, True)}"
        if "blip" in needed:
            folder = model_folder(blip, TRANSFORMERS_FILES)
            scorer.blip = load_blip(folder, device)
            size = f"images at {IMAGE_SIZE}, positions for {scorer.blip.trained_size}"
            scorer.facts["blip"] = f"{blip}, {fingerprint(folder)}, {size}"
        if "detector" in needed:
            folder = model_folder(detector, TRANSFORMERS_FILES)
            scorer.detector = loaded = load_detector(folder, device, batch)
            scorer.facts["detector"] = f"{detector}, {fingerprint(folder)}, confidence from {loaded.threshold}"
            scorer.facts["detector_note"] = NOTE
        if "clip" in needed:
            folder = model_folder(clip, CLIP_FILES)
            scorer.clip = load_clip(folder, device)
            scorer.facts["clip"] = f"{clip}, {fingerprint(folder)}, raw cosine"
        return scorer

    def score(
        self, category: str, images: Tensor, prompts: Sequence[str], complex_kind: Sequence[str] | None = None
    ) -> Tensor:
        """Scores images uint8 [n, 3, H, W] by their n prompts -> float64 [n].

        `complex_kind`: for "complex" only, the kind of each prompt from prompts.read_complex_kinds(). A complex score
        is the mean of the scores that COMPLEX_KINDS lists. Raises UserError for a category that was not loaded, and for
        a prompt without a noun or kind.
        """
        assert images.dtype == torch.uint8 and images.ndim == 4 and len(images) == len(prompts), images.shape
        missing = sorted(NEEDS.get(category, set()) - self._loaded())
        if category not in NEEDS or missing:
            raise UserError(f"the scorer was loaded without {category!r} ({', '.join(missing) or 'unknown category'})")
        if category in ATTRIBUTES:
            return self._attribute(images, prompts)
        if category == "spatial":
            return self._spatial(images, prompts, nearest=False)
        if category == "non_spatial":
            return self._action(images, prompts, adjectives=True)
        if complex_kind is None or len(complex_kind) != len(prompts) or set(complex_kind) - COMPLEX_KINDS.keys():
            raise UserError(f"complex: each prompt needs a kind, one of {', '.join(COMPLEX_KINDS)}")
        parts = {"attribute": self._attribute, "spatial": self._spatial, "action": self._action}
        total = torch.zeros(len(images), dtype=torch.float64)
        for part, score_part in parts.items():
            rows = [row for row, kind in enumerate(complex_kind) if part in COMPLEX_KINDS[kind]]
            total[rows] += score_part(images[rows], [prompts[row] for row in rows])
        return total / torch.tensor([len(COMPLEX_KINDS[kind]) for kind in complex_kind], dtype=torch.float64)

    def _loaded(self) -> set[str]:
        parts = {"spacy": self.nlp, "blip": self.blip, "detector": self.detector, "clip": self.clip}
        return {name for name, part in parts.items() if part is not None}

    def _parse(self, prompts: Sequence[str]) -> list[Any]:
        """Returns spaCy's Doc of each prompt. Repeated prompts are parsed once, as every prompt has several images."""
        unique = list(dict.fromkeys(prompts))
        docs = dict(zip(unique, self.nlp.pipe(unique), strict=True))
        return [docs[prompt] for prompt in prompts]

    def _attribute(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert self.blip is not None
        phrases = [nouns.noun_phrases(doc) for doc in self._parse(prompts)]
        return attribute_scores(self.blip, images, phrases, self.batch)

    def _action(self, images: Tensor, prompts: Sequence[str], adjectives: bool = False) -> Tensor:
        assert self.clip is not None
        texts = prompts if adjectives else [nouns.without_adjectives(doc) for doc in self._parse(prompts)]
        return cosines(self.clip, images, texts, self.batch)

    def _spatial(self, images: Tensor, prompts: Sequence[str], nearest: bool = True) -> Tensor:
        """`nearest`: takes the nouns around the preposition, for complex prompts; else the first and the last noun."""
        assert self.detector is not None
        names: list[list[str]] = []
        for prompt, doc in zip(prompts, self._parse(prompts), strict=True):
            pair = nouns.nouns_around(doc) if nearest else nouns.outer_nouns(doc)
            if pair is None and not nearest:
                raise UserError(
                    f"spaCy finds no noun in the spatial prompt {prompt!r}: use the pipeline en_core_web_sm, which does"
                )
            names.append([object_name(noun) for noun in pair or ()])
        scale = FRAME / min(images.shape[-2:])
        scores = [
            spatial_score(prompt, *(_scaled(box, scale) for box in boxes)) if pair else 0.0
            for prompt, pair, boxes in zip(prompts, names, self.detector(images, names), strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64)


def _scaled(box: Box | None, scale: float) -> Box | None:
    """Converts a box from pixels of the image to pixels of the frame that the published distances refer to."""
    return box and Box(box.confidence, *(scale * side for side in box[1:]))
