"""The vision-language model that answers GenEval 2's questions.

In: an image and a question. Out: the probability of the correct answer as the first word. The question is put, and the
answers are weighed, as by GenEval 2's own script: greedy decoding of one token, in the dtype of the weights.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from randcond.eval.features.network_weights import load_network, model_folder, settings_fingerprint
from randcond.eval.geneval2.questions import NUMERALS, Question
from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.checkpoints.hub import is_hub_id

FILES = ("config.json", "tokenizer_config.json")
FAMILIES = ("qwen3_vl",)  # model types; the published scores are of Qwen3-VL-8B-Instruct
MOST_ODD = 0.1  # share of answers in other words from which a report warns


@dataclass(frozen=True)
class Answer:
    """A judge's answer to a question."""

    probability: float  # of the correct answer
    token: int  # the first token that it would say


@dataclass(frozen=True)
class Judge:
    """A vision-language model with its processor."""

    model: Any
    processor: Any
    identity: str

    def ask(self, image: Image.Image, question: Question) -> Answer:
        """Asks a question about an image."""
        first = self._first_token(image, f"{question.text} Answer in one word.")
        probability = sum(float(first[self._token(answer)]) for answer in question.answers)
        return Answer(probability, int(first.argmax()))

    @torch.no_grad()
    def _first_token(self, image: Image.Image, text: str) -> torch.Tensor:
        """Returns the probabilities of all tokens [vocabulary] as the first of the answer."""
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        options = {"max_new_tokens": 1, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        return torch.softmax(self.model.generate(**inputs, **options).scores[0][0], dim=-1)

    def _token(self, text: str) -> int:
        return int(self.processor.tokenizer.encode(text)[0])

    def warnings(self, tokens: Sequence[int]) -> list[str]:
        """Returns a sentence if many answers are in other words, such as a refusal. tokens: the first of each."""
        words = {self._token(word) for word in _possible_words()}
        odd = Counter(token for token in tokens if token not in words)
        number = odd.total()
        if number <= MOST_ODD * len(tokens):
            return []
        often = ", ".join(repr(self.processor.tokenizer.decode([token])) for token, _ in odd.most_common(3))
        return [
            f"the judge began {number} of {len(tokens)} answers with other words than yes, no or a number ({often}). "
            f"They count as wrong: check that eval.geneval2.judge reads images"
        ]


def _possible_words() -> list[str]:
    words = ["yes", "no", "zero", "0", *NUMERALS, *NUMERALS.values()]
    return [form for word in words for form in (word, word.capitalize(), f" {word}", f" {word.capitalize()}")]


def check_judge(source: str) -> None:
    """Raises UserError naming the key if a local folder can't be a judge. Downloads and loads nothing."""
    if not Path(source).is_dir():
        if not is_hub_id(source.partition("@")[0]):
            raise UserError(f"eval.geneval2.judge: there is no folder {source}")
        return
    try:
        model_folder(source, FILES, sharded=True)
    except UserError as error:
        raise UserError(f"eval.geneval2.judge: {error}") from None


def load_judge(source: str, device: torch.device | str) -> Judge:
    """Loads a judge from a transformers folder or hub id, in the dtype of its weights.

    Raises UserError naming the key if it is missing, of another kind, or can't be loaded.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        folder = model_folder(source, FILES, sharded=True)
        model, processor = load_network(AutoModelForImageTextToText, AutoProcessor, folder, FAMILIES, dtype="auto")
    except UserError as error:
        raise UserError(f"eval.geneval2.judge: {error}") from None
    weights = folder_fingerprint(folder)
    return Judge(model.to(device), processor, f"{source} {settings_fingerprint(folder)} {weights}")
