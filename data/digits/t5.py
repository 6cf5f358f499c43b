"""The T5 tokenizer and text encoder of the digits world's flow-matching teacher: T5's classes, a small vocabulary."""

from transformers import T5Config, T5EncoderModel, T5Tokenizer

from randcond.data.digits.world import all_captions

LENGTH = 10  # tokens of a caption, with the end mark; `teacher.text_tokens` of the world's experiments


def build_t5_tokenizer() -> T5Tokenizer:
    """Returns a tokenizer to which every word of the world is one token. Other words split into letters."""
    words = sorted({word for caption in all_captions() for word in caption.text.split()})
    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in words] + [(letter, -5.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def build_t5(tokenizer: T5Tokenizer, width: int) -> T5EncoderModel:
    """Returns an untrained T5 encoder with one layer and 4 heads."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=32,
            d_ff=256,
            num_layers=1,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
