"""Makes tiny transformer teachers with random weights as diffusers folders, in the forms of the published ones."""

import io
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from sentencepiece import SentencePieceTrainer
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from randcond.launch.runtime.files import read_json, write_json
from randcond.model_zoo.checkpoints.layouts import VAE
from randcond.model_zoo.importing.clip_tokenizer import clip_tokenizer
from tests.support.shaped import FEW_MERGES

WORDS = ["a", "red", "blue", "cat", "dog", "on", "the", "table", "photo", "of", "one", "two", "with", "and", "in"]
T5_WIDTH, T5_LENGTH = 32, 512


def t5_tokenizer() -> T5Tokenizer:
    """Returns a T5 tokenizer of a few words, and of single letters for all others."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in WORDS] + [(letter, -5.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)


def write_sentencepiece(folder: Path) -> T5Tokenizer:
    """Writes T5's tokenizer as the published PixArt folders have it: a SentencePiece model. Returns it, loaded."""
    model = io.BytesIO()
    sentences = [" ".join(WORDS[first:] + WORDS[:first]) for first in range(len(WORDS))] * 10
    numbers = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}  # T5's
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=64, hard_vocab_limit=False, num_threads=1,
        pad_piece="<pad>", minloglevel=2, **numbers,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0}
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": T5_LENGTH, **special}
    write_json(folder / "tokenizer_config.json", settings)
    return T5Tokenizer.from_pretrained(folder, local_files_only=True)


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Returns a T5 encoder of width 32 with random weights."""
    sizes: dict[str, Any] = {"d_model": T5_WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes, feed_forward_proj="gated-gelu")).eval()


def clip(width: int, projection: int, tokenizer: Any) -> CLIPTextModelWithProjection:
    """Returns a CLIP text encoder with random weights."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 3, "num_attention_heads": 2}
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "projection_dim": projection}
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **words)).eval()


def vae(channels: int, **more: Any) -> AutoencoderKL:
    """Returns an autoencoder with random weights that makes an image eight times smaller."""
    small = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8}
    return AutoencoderKL(**{**VAE, **small, "latent_channels": channels, **more})


def sd3(
    folder: Path, seed: int = 0, with_t5: bool = True, networks: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """Saves a teacher in the layout of SD 3.5 Medium, with 6 blocks of which 3 have two attentions.

    `networks`: other ones in place of the small ones, by the pipeline's names.
    """
    torch.manual_seed(seed)
    tokenizers = [clip_tokenizer(pad, FEW_MERGES) for pad in (None, "!")]
    third = t5_tokenizer() if with_t5 else None
    sizes = {
        "sample_size": 16, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 6,
        "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32,
        "joint_attention_dim": T5_WIDTH, "pooled_projection_dim": 8 + 12, "pos_embed_max_size": 24,
        "dual_attention_layers": (0, 1, 2), "qk_norm": "rms_norm",
    }  # fmt: skip
    parts = networks or {
        "transformer": SD3Transformer2DModel(**{**sizes, **changes}).eval(),
        "vae": vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip(8, 8, tokenizers[0]),
        "text_encoder_2": clip(12, 12, tokenizers[1]),
        "text_encoder_3": t5_encoder(third) if third else None,
    }
    pipe = StableDiffusion3Pipeline(
        **parts,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tokenizer_3=third,
    )
    pipe.save_pretrained(folder)
    return folder


def pixart_alpha(folder: Path) -> Path:
    """Saves a teacher in the layout of PixArt-alpha at 1,024 pixels, which is given the image's sizes."""
    sizes = {"sample_size": 128, "num_layers": 2, "num_attention_heads": 3, "cross_attention_dim": 24}
    return pixart(folder, pipeline=PixArtAlphaPipeline, **sizes, use_additional_conditions=True)


def pixart(
    folder: Path,
    seed: int = 0,
    pipeline: Any = PixArtSigmaPipeline,
    networks: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Saves a teacher in the layout of PixArt-Sigma, with 6 blocks and latents of 16 x 16, as the published one is.

    `networks`: other ones in place of the small ones, by the pipeline's names.
    """
    torch.manual_seed(seed)
    tokenizer = write_sentencepiece(folder / "tokenizer")
    sizes = {
        "sample_size": 16, "num_attention_heads": 4, "attention_head_dim": 8, "cross_attention_dim": 32,
        "caption_channels": T5_WIDTH, "num_layers": 6, "use_additional_conditions": False,
    }  # fmt: skip
    parts = networks or {
        "text_encoder": t5_encoder(tokenizer),
        "vae": vae(4, scaling_factor=0.13025),
        "transformer": PixArtTransformer2DModel(**{**sizes, **changes}).eval(),
    }
    pipe = pipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )
    pipe.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    write_sentencepiece(folder / "tokenizer")
    # The published folders are older than PixArtTransformer2DModel.
    config, index = folder / "transformer" / "config.json", folder / "model_index.json"
    unused = {"num_vector_embeds": None, "only_cross_attention": False, "use_linear_projection": False}
    write_json(config, {**read_json(config), "_class_name": "Transformer2DModel", **unused})
    write_json(index, {**read_json(index), "transformer": ["diffusers", "Transformer2DModel"]})
    return folder


QWEN_LAYERS = 29  # more than the 27 that the pipeline reads
CHAT = (  # what Qwen3's template makes of one message without thinking
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Returns a tokenizer of single bytes with Qwen's special tokens and chat template."""
    vocabulary = {character: number for number, character in enumerate(bytes_to_unicode().values())}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], chat_template=CHAT, model_max_length=131072)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def klein(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves a teacher in the layout of FLUX.2 klein, with 3 blocks of two streams and 4 of one."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=QWEN_LAYERS, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    sizes = {
        "in_channels": 32, "num_layers": 3, "num_single_layers": 4, "attention_head_dim": 8, "num_attention_heads": 4,
        "joint_attention_dim": 3 * 16, "axes_dims_rope": (2, 2, 2, 2), "guidance_embeds": False,
        "timestep_guidance_channels": 32,
    }  # fmt: skip
    small = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8}
    autoencoder = AutoencoderKLFlux2(**{**VAE, **small, "latent_channels": 8}).eval()
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2.0)
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder,
        text_encoder=Qwen3ForCausalLM(text).eval(),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(**{**sizes, **changes}).eval(),
    )
    pipe.save_pretrained(folder)
    return folder


def aura_flow(folder: Path, seed: int = 0) -> Path:
    """Saves a teacher in the layout of AuraFlow, with 2 blocks of two streams and 4 of one."""
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    text = UMT5Config(vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    sizes = {
        "sample_size": 16, "num_mmdit_layers": 2, "num_single_dit_layers": 4, "attention_head_dim": 8,
        "num_attention_heads": 4, "joint_attention_dim": T5_WIDTH, "caption_projection_dim": 32,
        "pos_embed_max_size": 144,
    }  # fmt: skip
    pipe = AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=vae(4, scaling_factor=0.13025),
        transformer=AuraFlowTransformer2DModel(**sizes).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    pipe.save_pretrained(folder)
    return folder
