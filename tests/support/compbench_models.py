"""Makes small models with random weights in the published formats, and a small trained spaCy pipeline."""

import json
import random
from itertools import islice
from pathlib import Path

import open_clip
import spacy
import torch
from safetensors.torch import save_file
from spacy.tokens import Doc
from spacy.training import Example
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from tests.support.shaped import clip_tokenizer

NOUNS = ("cat", "sofa", "lamp", "horse", "mug", "coaster", "plant", "girl", "boy", "train", "bench", "bowl")
ADJECTIVES = ("red", "soft", "wooden", "black", "green", "round", "fluffy")
VERBS = ("sat", "lay", "stood", "floated")


def make_blip(folder: Path, words: tuple[str, ...] = ("yes", "no"), extra: int = 2) -> Path:
    """Saves a small BLIP for question answering on images of 32 pixels; returns `folder`.

    `extra`: the number of token ids that the tokenizer lacks. The published tokenizer lacks two: [DEC] and [ENC].
    """
    torch.manual_seed(2)  # a seed that gives answers that are neither certain nor equal
    folder.mkdir(parents=True)
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", "a", "the", *words, *NOUNS, *ADJECTIVES]
    (folder / "words.txt").write_text("\n".join(known))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": len(known) + extra, "encoder_hidden_size": 16, "bos_token_id": len(known), "pad_token_id": 0,
        "sep_token_id": 3, "eos_token_id": 3, "initializer_range": 0.4,
    }  # fmt: skip
    vision = {"image_size": 32, "patch_size": 16, "initializer_range": 1.0}
    config = BlipConfig(text_config={**sizes, **text}, vision_config={**sizes, **vision}, initializer_range=0.4)
    BlipForQuestionAnswering(config).save_pretrained(folder)
    tokenizer = BertTokenizer(str(folder / "words.txt"))
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def make_clip(folder: Path) -> Path:
    """Saves a small CLIP in open_clip's folder format, with CLIP's own vocabulary; returns `folder`."""
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def make_detector(folder: Path) -> Path:
    """Saves a small OWLv2 for images of 32 pixels, with CLIP's own vocabulary; returns `folder`."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 49408, "max_position_embeddings": 16, "initializer_range": 0.5}
    vision = {"image_size": 32, "patch_size": 8, "initializer_range": 0.5}
    config = Owlv2Config(
        text_config={**sizes, **text}, vision_config={**sizes, **vision}, projection_dim=16, initializer_range=0.5
    )
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    tokenizer = clip_tokenizer(pad="!")
    tokenizer.model_max_length = 16
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


# Sentence patterns like the benchmark's. Each token: word or word class / part of speech / dependency / index of the
# token it depends on.
GRAMMAR = (
    "a/DET/det/2 ADJ/ADJ/amod/2 N/NOUN/ROOT/2 and/CCONJ/cc/2 a/DET/det/6 ADJ/ADJ/amod/6 N/NOUN/conj/2",
    "a/DET/det/1 N/NOUN/ROOT/1 on/ADP/prep/1 the/DET/det/4 SIDE/NOUN/pobj/2 of/ADP/prep/4 a/DET/det/7 N/NOUN/pobj/5",
    "a/DET/det/1 N/NOUN/ROOT/1 on/ADP/prep/1 side/NOUN/pobj/2 of/ADP/prep/3 a/DET/det/6 N/NOUN/pobj/4",
    "a/DET/det/1 N/NOUN/ROOT/1 next/ADV/advmod/1 to/ADP/prep/2 a/DET/det/5 N/NOUN/pobj/3",
    "a/DET/det/1 N/NOUN/ROOT/1 near/ADP/prep/1 a/DET/det/4 N/NOUN/pobj/2",
    "The/DET/det/2 ADJ/ADJ/amod/2 N/NOUN/nsubj/3 was/AUX/ROOT/3 on/ADP/prep/3 top/NOUN/pobj/4 of/ADP/prep/5 "
    "the/DET/det/9 ADJ/ADJ/amod/9 N/NOUN/pobj/6 ./PUNCT/punct/3",
    "The/DET/det/2 ADJ/ADJ/amod/2 N/NOUN/nsubj/3 was/AUX/ROOT/3 on/ADP/prep/3 the/DET/det/6 SIDE/NOUN/pobj/4 "
    "of/ADP/prep/6 the/DET/det/10 ADJ/ADJ/amod/10 N/NOUN/pobj/7 ./PUNCT/punct/3",
    "The/DET/det/2 ADJ/ADJ/amod/2 N/NOUN/nsubj/3 V/VERB/ROOT/3 next/ADV/advmod/3 to/ADP/prep/4 the/DET/det/8 "
    "ADJ/ADJ/amod/8 N/NOUN/pobj/5 ./PUNCT/punct/3",
    "The/DET/det/2 ADJ/ADJ/amod/2 N/NOUN/nsubj/3 V/VERB/ROOT/3 near/ADP/prep/3 the/DET/det/7 ADJ/ADJ/amod/7 "
    "N/NOUN/pobj/4 and/CCONJ/cc/7 the/DET/det/11 ADJ/ADJ/amod/11 N/NOUN/conj/7 ./PUNCT/punct/3",
    "The/DET/det/2 ADJ/ADJ/amod/2 N/NOUN/nsubj/3 V/VERB/ROOT/3 on/ADP/prep/3 the/DET/det/7 ADJ/ADJ/amod/7 "
    "N/NOUN/pobj/4 ./PUNCT/punct/3",
)  # fmt: skip
CLASSES = {"N": NOUNS, "ADJ": ADJECTIVES, "V": VERBS, "SIDE": ("left", "right", "top", "bottom")}


def annotated(rng: random.Random, count: int) -> list[dict]:
    """Returns `count` sentences of the grammar, all patterns in turn, as annotations for spaCy."""
    kinds = (kind for _ in range(count) for kind in GRAMMAR)
    sentences = []
    for kind in islice(kinds, count):
        words, pos, deps, heads = zip(*(token.split("/") for token in kind.split()), strict=True)
        chosen = [rng.choice(CLASSES[word]) if word in CLASSES else word for word in words]
        heads = [int(head) for head in heads]
        sentences.append({"words": chosen, "pos": list(pos), "deps": list(deps), "heads": heads})
    return sentences


def make_pipeline(folder: Path, parts: tuple[str, ...] = ("morphologizer", "parser"), epochs: int = 12) -> Path:
    """Trains and saves a small English pipeline that parses new sentences of the grammar; returns `folder`."""
    rng = random.Random(0)
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    small = {"@architectures": "spacy.HashEmbedCNN.v2", "width": 32, "depth": 2, "embed_size": 200, "window_size": 1,
             "maxout_pieces": 2, "subword_features": True, "pretrained_vectors": None}  # fmt: skip
    models = {
        "morphologizer": {"@architectures": "spacy.Tagger.v2", "tok2vec": small},
        "parser": {
            "@architectures": "spacy.TransitionBasedParser.v2", "state_type": "parser", "hidden_width": 32,
            "extra_state_tokens": False, "maxout_pieces": 2, "use_upper": True, "tok2vec": small,
        },
    }  # fmt: skip
    rare = {"parser": {"min_action_freq": 1}}  # by default, the parser drops rare labels
    for part in parts:
        nlp.add_pipe(part, config={"model": models[part], **rare.get(part, {})})
    train = [Example.from_dict(Doc(nlp.vocab, each["words"]), each) for each in annotated(rng, 60)]
    optimizer = nlp.initialize(lambda: train)
    for _ in range(epochs):
        rng.shuffle(train)
        for start in range(0, len(train), 6):
            nlp.update(train[start : start + 6], sgd=optimizer)
    nlp.to_disk(folder)
    return folder
