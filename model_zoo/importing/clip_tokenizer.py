"""CLIP's tokenizer, built from the merges that open_clip ships."""

import gzip
from pathlib import Path

import open_clip
from transformers import CLIPTokenizer

from randcond.model_zoo.checkpoints.layouts import VOCABULARY

_BYTES = 256
MERGES = VOCABULARY - 2 * _BYTES - 2


def clip_tokenizer(pad: str | None = None, merges: int = MERGES) -> CLIPTokenizer:
    """Returns CLIP's tokenizer. `pad`: its pad token; None: the end of text, as Stable Diffusion 1.x has it.

    `merges`: how many of its merges it has. With fewer it has a smaller vocabulary, and loads faster.
    """
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : merges + 1]
    pairs = [tuple(merge.split()) for merge in lines]
    alphabet = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=77, **({"pad_token": pad} if pad else {}))
