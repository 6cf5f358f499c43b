"""BLIP-VQA: how surely BLIP says yes to each noun phrase of a prompt (colour, shape, texture; part of complex).

In: images uint8 [n, 3, H, W] and the noun phrases of each. Out: scores [n], a product of probabilities.

The probability as published: the text encoder reads the question after [ENC] (not [CLS]) and looks at the image; the
decoder, given [DEC] and that, gives logits over the vocabulary for the answer's first token; after the softmax,
p(yes) / (p(yes) + p(no)), which is sigmoid(logit of yes - logit of no). They round it to four digits, here it is not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from randcond.eval.scores.network_weights import load_network
from randcond.launch.errors import UserError

IMAGE_SIZE = 480
QUESTION_WORDS, QUESTION_TOKENS = 50, 35  # the rest is cut off


@dataclass(frozen=True)
class Blip:
    """A BLIP for questions in eval mode, with its tokenizer, its image processor and the ids of its special tokens."""

    model: Any  # BlipForQuestionAnswering
    tokenizer: Any
    image_processor: Any
    encoder_start: int  # [ENC]
    decoder_start: int  # [DEC]
    yes: int
    no: int

    @property
    def trained_size(self) -> int:
        """Pixels of an image's side that the position embeddings are made for.

        The hub's weights have 384, resized from the 480 that are published; at 480 they are resized once more.
        """
        return self.model.config.vision_config.image_size


def load_blip(folder: Path, device: torch.device | str) -> Blip:
    """Loads BLIP from a transformers folder, in fp32 as published.

    Raises UserError naming a folder that holds no BLIP for questions, or whose tokenizer lacks what is needed.
    """
    from transformers import BlipForQuestionAnswering, BlipProcessor

    model, processor = load_network(BlipForQuestionAnswering, BlipProcessor, folder, ("blip",))
    tokenizer = processor.tokenizer
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    if tokenizer.unk_token_id in (yes, no):
        raise UserError(f'{folder}: the tokenizer has no "yes" or no "no"')
    text = model.config.text_config
    if text.bos_token_id + 1 >= text.vocab_size:  # BLIP adds [DEC] and [ENC], in this order, behind BERT's words
        raise UserError(f"{folder}: config.json: vocab_size {text.vocab_size} leaves no [ENC] after bos_token_id")
    start = text.bos_token_id
    return Blip(model.to(device), tokenizer, processor.image_processor, start + 1, start, yes, no)


def attribute_scores(blip: Blip, images: Tensor, phrases: Sequence[Sequence[str]], batch: int) -> Tensor:
    """Product of p(yes) over each image's noun phrases, float64 [n]; an image without any has 1, as published.

    images uint8 [n, 3, H, W]; `batch` of them are seen at a time.
    """
    scores = torch.ones(len(images), dtype=torch.float64)
    for start in range(0, len(images), batch):
        chunk = phrases[start : start + batch]
        owners = torch.tensor([number for number, own in enumerate(chunk) for _ in own], dtype=torch.long)
        if len(owners):
            seen = see(blip, images[start : start + batch])
            probabilities = yes_probability(blip, seen, [f"{phrase}?" for own in chunk for phrase in own], owners)
            scores[start : start + batch].scatter_reduce_(0, owners, probabilities, "prod")
    return scores


@torch.inference_mode()
def see(blip: Blip, images: Tensor) -> Tensor:
    """Images uint8 [n, 3, H, W] -> what BLIP's vision encoder sees of them [n, patches + 1, width]."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pixels = blip.image_processor(images=list(images), size=size, return_tensors="pt")["pixel_values"]
    vision = blip.model.vision_model
    return vision(pixel_values=pixels.to(blip.model.device), interpolate_pos_encoding=True).last_hidden_state


@torch.inference_mode()
def yes_probability(blip: Blip, seen: Tensor, questions: Sequence[str], owners: Tensor) -> Tensor:
    """p(yes) of each question, float64 [q], about the image in row `owners` [q] of `seen` [n, patches + 1, width]."""
    asked = blip.tokenizer([plain(question) for question in questions], truncation=True, max_length=QUESTION_TOKENS)[
        "input_ids"
    ]
    found = torch.zeros(len(asked), dtype=torch.float64)
    # Together go questions of one length, so that none is padded: transformers 5 loses the mask of the decoder's
    # cross-attention, and padding would count as part of the question.
    for length in sorted(set(map(len, asked))):
        rows = torch.tensor([row for row, ids in enumerate(asked) if len(ids) == length])
        ids = torch.tensor([asked[row] for row in rows], device=seen.device)  # [r, length]
        ids[:, 0] = blip.encoder_start
        read = blip.model.text_encoder(input_ids=ids, encoder_hidden_states=seen[owners[rows].to(seen.device)])
        answered = blip.model.text_decoder(
            input_ids=torch.full((len(rows), 1), blip.decoder_start, device=seen.device),
            encoder_hidden_states=read.last_hidden_state,
        )
        logits = answered.logits[:, 0].double()  # [r, vocabulary]
        found[rows] = torch.sigmoid(logits[:, blip.yes] - logits[:, blip.no]).cpu()
    return found


def plain(question: str) -> str:
    """A question as BLIP was taught them: small letters, no punctuation but commas and the like, 50 words at most."""
    text = re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:QUESTION_WORDS])
