"""BLIP-VQA: the probability that BLIP answers "yes" to each noun phrase of a prompt (color, shape, texture, complex).

In: images uint8 [n, 3, H, W] and the noun phrases of each. Out: scores [n], a product of probabilities.

The probability is the published one. The text encoder reads the question, which starts with [ENC] instead of [CLS], and
attends to the image. The decoder starts with [DEC], attends to the encoded question, and gives the logits of the
answer's first token. The softmax gives p(yes) / (p(yes) + p(no)) = sigmoid(logit of yes - logit of no). The published
code rounds it to four digits; this code does not round.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from randcond.eval.features.network_weights import load_network
from randcond.launch.errors import UserError

IMAGE_SIZE = 480  # pixels
QUESTION_WORDS, QUESTION_TOKENS = 50, 35  # longer questions are cut off


@dataclass(frozen=True)
class Blip:
    """A BLIP for questions in eval mode, with its tokenizer, its image processor and the ids of the tokens it needs."""

    model: Any  # BlipForQuestionAnswering
    tokenizer: Any
    image_processor: Any
    encoder_start: int  # [ENC]
    decoder_start: int  # [DEC]
    yes: int
    no: int

    @property
    def trained_size(self) -> int:
        """Image side in pixels that the position embeddings are made for.

        The weights on the hub have 384, resized from the published 480. At 480 pixels they are resized again.
        """
        return self.model.config.vision_config.image_size


def load_blip(folder: Path, device: torch.device | str) -> Blip:
    """Loads BLIP from a transformers folder, in fp32 as published.

    Raises UserError naming a folder that holds no BLIP for questions, or whose tokenizer lacks a token.
    """
    from transformers import BlipForQuestionAnswering, BlipProcessor

    model, processor = load_network(BlipForQuestionAnswering, BlipProcessor, folder, ("blip",))
    tokenizer = processor.tokenizer
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    if tokenizer.unk_token_id in (yes, no):
        raise UserError(f'{folder}: the tokenizer has no "yes" or no "no"')
    text = model.config.text_config
    if text.bos_token_id + 1 >= text.vocab_size:  # BLIP adds [DEC] and [ENC], in this order, after BERT's vocabulary
        raise UserError(f"{folder}: config.json: vocab_size {text.vocab_size} leaves no [ENC] after bos_token_id")
    start = text.bos_token_id
    return Blip(model.to(device), tokenizer, processor.image_processor, start + 1, start, yes, no)


def attribute_scores(blip: Blip, images: Tensor, phrases: Sequence[Sequence[str]], batch: int) -> Tensor:
    """Returns the product of p(yes) over each image's noun phrases, float64 [n].

    images uint8 [n, 3, H, W], encoded `batch` at a time. An image without noun phrases scores 1, as published.
    """
    scores = torch.ones(len(images), dtype=torch.float64)
    for start in range(0, len(images), batch):
        batch_phrases = phrases[start : start + batch]
        owners = torch.tensor(
            [index for index, image_phrases in enumerate(batch_phrases) for _ in image_phrases], dtype=torch.long
        )
        if len(owners):
            encoded = encode_images(blip, images[start : start + batch])
            questions = [f"{phrase}?" for image_phrases in batch_phrases for phrase in image_phrases]
            probabilities = yes_probability(blip, encoded, questions, owners)
            scores[start : start + batch].scatter_reduce_(0, owners, probabilities, "prod")
    return scores


@torch.inference_mode()
def encode_images(blip: Blip, images: Tensor) -> Tensor:
    """Encodes images uint8 [n, 3, H, W] with BLIP's vision encoder -> [n, patches + 1, width]."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pixels = blip.image_processor(images=list(images), size=size, return_tensors="pt")["pixel_values"]
    vision = blip.model.vision_model
    return vision(pixel_values=pixels.to(blip.model.device), interpolate_pos_encoding=True).last_hidden_state


@torch.inference_mode()
def yes_probability(blip: Blip, encoded: Tensor, questions: Sequence[str], owners: Tensor) -> Tensor:
    """Returns p(yes) of each question, float64 [q], in [0, 1].

    `encoded` [n, patches + 1, width]: images from encode_images(). `owners` [q]: the image that each question is about,
    as an index into `encoded`.
    """
    cleaned = [clean_question(question) for question in questions]
    token_ids = blip.tokenizer(cleaned, truncation=True, max_length=QUESTION_TOKENS)["input_ids"]
    probabilities = torch.zeros(len(token_ids), dtype=torch.float64)
    # Questions of equal length are batched, so that none is padded: transformers 5 drops the mask of the decoder's
    # cross-attention, and padding would count as part of the question.
    for length in sorted(set(map(len, token_ids))):
        rows = torch.tensor([row for row, ids in enumerate(token_ids) if len(ids) == length])
        ids = torch.tensor([token_ids[row] for row in rows], device=encoded.device)  # [r, length]
        ids[:, 0] = blip.encoder_start
        question = blip.model.text_encoder(
            input_ids=ids, encoder_hidden_states=encoded[owners[rows].to(encoded.device)]
        )
        answer = blip.model.text_decoder(
            input_ids=torch.full((len(rows), 1), blip.decoder_start, device=encoded.device),
            encoder_hidden_states=question.last_hidden_state,
        )
        logits = answer.logits[:, 0].double()  # [r, vocabulary]
        probabilities[rows] = torch.sigmoid(logits[:, blip.yes] - logits[:, blip.no]).cpu()
    return probabilities


def clean_question(question: str) -> str:
    """Returns a question as BLIP was trained on them: lower case, most punctuation removed, at most 50 words."""
    text = re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:QUESTION_WORDS])
