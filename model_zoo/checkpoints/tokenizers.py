"""Tokenizes captions for each of a teacher's text encoders, as the teacher's own pipeline does."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from randcond.launch.errors import UserError

Prepare = Callable[[Any, str], str]  # (tokenizer, caption) -> text
_NAMES = ("tokenizer", "tokenizer_2", "tokenizer_3")
_KEYS = ("token_ids", "token_ids_2", "token_ids_3")
_LONGEST = 1 << 20  # tokens; transformers says 10^30 if a tokenizer has no limit


class Tokenizers:
    """Converts B captions to token ids for each text encoder.

    Out: {"token_ids": int64 [B, L], "token_ids_2": int64 [B, L], ...}, one key per text encoder.
    """

    def __init__(
        self,
        tokenizers: list[Any],
        where: str = "the teacher",
        lengths: Sequence[int | None] = (None,) * 3,
        prepare: Sequence[Prepare | None] = (None,) * 3,
    ) -> None:
        """`tokenizers`: transformers tokenizers, one per text encoder. `where`: their folder, for messages.

        `lengths`: L of each; None: the tokenizer's model_max_length. `prepare`: what is done to captions before.
        Raises UserError naming file and key if a tokenizer can't be repeated exactly.
        """
        self._parts = [
            Tokenizer(tokenizer, f"{where}/{name}", length, before)
            for tokenizer, name, length, before in zip(tokenizers, _NAMES, lengths, prepare, strict=False)
        ]

    def __call__(self, captions: list[str]) -> dict[str, Tensor]:
        """Returns token ids [B, L] per text encoder, padded and truncated to its L."""
        return {key: part(captions) for key, part in zip(_KEYS, self._parts, strict=False)}


class Tokenizer:
    """Calls a copy of a tokenizer's Rust backend, which takes half the time of calling the tokenizer."""

    def __init__(self, tokenizer: Any, where: str, length: int | None = None, prepare: Prepare | None = None) -> None:
        """`tokenizer`: of transformers. `where`: its folder, for messages. `length`: L; None: its model_max_length.

        `prepare`: what is done to captions before. Raises UserError as `Tokenizers` does.
        """
        _check(tokenizer, where, length)
        self._prepare = partial(prepare, tokenizer) if prepare else None
        self._length, self._padding = length or tokenizer.model_max_length, tokenizer.pad_token_id
        self._backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.enable_truncation(self._length)
        self._backend.no_padding()
        self._vectors = _concepts_of_several_vectors(list(tokenizer.added_tokens_encoder))

    def __call__(self, captions: list[str]) -> Tensor:
        """Returns token ids [B, L]."""
        if self._prepare:
            captions = [self._prepare(caption) for caption in captions]
        if self._vectors:
            captions = [self._with_all_vectors(caption) for caption in captions]
        ids = np.full((len(captions), self._length), self._padding, dtype=np.int64)
        for row, encoding in zip(ids, self._backend.encode_batch_fast(captions), strict=True):
            tokens = encoding.ids
            row[: len(tokens)] = tokens
        return torch.from_numpy(ids)

    def _with_all_vectors(self, caption: str) -> str:
        """Names all vectors of each concept in a caption, as diffusers' TextualInversionLoaderMixin does."""
        if any(concept in caption for concept in self._vectors):
            present = set(self._backend.encode(caption, add_special_tokens=False).tokens)
            for concept, replacement in self._vectors.items():
                if concept in present:
                    caption = caption.replace(concept, replacement)
        return caption


def _concepts_of_several_vectors(added: list[str]) -> dict[str, str]:
    """Returns each concept of textual inversion that has several vectors, with the text that names all of them.

    >>> _concepts_of_several_vectors(["<cat>", "<cat>_1", "<cat>_2", "<dog>"])
    {'<cat>': '<cat> <cat>_1 <cat>_2'}
    """
    known, found = set(added), {}
    for concept in added:
        names = [concept]
        while (name := f"{concept}_{len(names)}") in known:
            names.append(name)
        if len(names) > 1:
            found[concept] = " ".join(names)
    return found


def _check(tokenizer: Any, where: str, length: int | None) -> None:
    """Raises UserError naming file and key if a tokenizer can't be repeated exactly."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"{where}: {type(tokenizer).__name__} has no tokenizer.json; expected a tokenizer of the libraries"
        )
    if length is None and tokenizer.model_max_length > _LONGEST:
        raise UserError(
            f"{where}/tokenizer_config.json: model_max_length is missing; write the length that the text encoder was "
            f"trained with (77 for CLIP)"
        )
    if tokenizer.padding_side != "right":
        raise UserError(f"{where}/tokenizer_config.json: padding_side is {tokenizer.padding_side}, expected right")
    if tokenizer.pad_token_id is None:
        raise UserError(f"{where}/tokenizer_config.json: pad_token is missing; CLIP's is <|endoftext|>")
