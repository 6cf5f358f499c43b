"""The tokenizer and text encoder of the digits teacher: CLIP's classes with a small vocabulary.

The CLIPTokenizer is a byte-level BPE with merges learned from the world's captions. Captions have up to 16 tokens.
"""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from randcond.data.digits.world import all_captions

MAX_LENGTH = 16
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """Learns byte-pair merges until every word of the world is one token. Other words split into bytes, as in CLIP."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([caption.text for caption in all_captions()], trainer)
    model = json.loads(bpe.to_str())["model"]
    # The order of CLIP's vocabulary: bytes, bytes that end a word, merges, the two special tokens.
    merged = ["".join(pair) for pair in model["merges"]]
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *merged, BEGIN, END]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))},
        merges=[tuple(pair) for pair in model["merges"]],
        model_max_length=MAX_LENGTH,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Returns an untrained CLIP text encoder with width 64, 2 layers and 4 heads."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
