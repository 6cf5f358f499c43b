"""Trains the digits world's flow-matching teacher: `make digits-flow-teacher`.

In: the embedded teacher, whose autoencoder and CLIP it shares. Out: OUT/teacher, a folder in Stable Diffusion 3's
layout, with its model card. The result depends only on a fixed seed and number of threads. Finished parts stay in OUT.
An interrupted run resumes with the first unfinished part.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from randcond.data.digits.flow_parts import STEPS, encode_all, train_t5, train_transformer, with_projection
from randcond.data.digits.judge import Judge
from randcond.data.digits.t5 import LENGTH
from randcond.data.digits.train_parts import BATCH, SEED, THREADS, score_teacher
from randcond.data.digits.train_teacher import Parts, card_facts
from randcond.launch.runtime.files import atomic_write, write_json, write_text
from randcond.launch.runtime.logs import start_console
from randcond.model_zoo.importing.older_libraries import for_older_libraries

EMBEDDED = Path(__file__).parent / "models" / "teacher"


def main(out: str) -> None:
    """Trains the parts that are missing in OUT, scores the teacher, and writes training.json and the model card."""
    folder = Path(out)
    torch.set_num_threads(THREADS)
    start_console()
    print(f"training the digits world's flow-matching teacher in {folder}: about half an hour on two cores")
    print("stop with Ctrl-C; the same command resumes with the first unfinished part")
    parts = Parts(folder)
    parts.make("T5", _write_t5, folder / "t5")
    parts.make("transformer", lambda temporary: _write_transformer(folder, temporary), folder / "transformer")
    if not (folder / "teacher").is_dir():
        with atomic_write(folder / "teacher") as temporary:
            write_teacher(folder, temporary)
    pipe = StableDiffusion3Pipeline.from_pretrained(folder / "teacher", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    judge = Judge.load()
    scores = {
        f"guidance {scale}": score_teacher(pipe, judge, scale, max_sequence_length=LENGTH) for scale in (1.5, 3.0, 5.0)
    }
    facts: dict[str, Any] = {
        "steps": STEPS,
        "seconds": sum(parts.seconds.values()),
        "seconds_by_part": parts.seconds,
        "scores": scores,
        "seed": SEED,
        "threads": THREADS,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "scikit-learn")},
    }
    write_json(folder / "teacher" / "training.json", facts)
    write_text(folder / "teacher" / "README.md", model_card(facts, pipe))
    for name, shares in scores.items():
        print(f"{name}: {', '.join(f'{what} {share:.1%}' for what, share in shares.items())}")
    print(f"use it with teacher.path={folder / 'teacher'} teacher.text_tokens={LENGTH}")


def _shared() -> tuple[AutoencoderKL, Any, CLIPTokenizer]:
    """Returns the autoencoder, the text encoder and the tokenizer of the embedded teacher."""
    vae = AutoencoderKL.from_pretrained(EMBEDDED / "vae", dtype=torch.float32).eval().requires_grad_(False)
    vae.register_to_config(shift_factor=0.0, _name_or_path="")  # SD 3's pipeline adds a shift
    clip = CLIPTextModel.from_pretrained(EMBEDDED / "text_encoder", dtype=torch.float32).eval()
    return vae, with_projection(clip), CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")


def _write_t5(folder: Path) -> None:
    _, clip, _ = _shared()
    tokenizer, encoder = train_t5(2 * clip.config.hidden_size)  # as wide as both CLIPs together
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "encoder")


def _read_t5(folder: Path) -> tuple[T5Tokenizer, T5EncoderModel]:
    encoder = T5EncoderModel.from_pretrained(folder / "t5" / "encoder").eval().requires_grad_(False)
    return T5Tokenizer.from_pretrained(folder / "t5" / "tokenizer"), encoder


def _write_transformer(folder: Path, temporary: Path) -> None:
    vae, clip, tokenizer = _shared()
    t5_tokenizer, t5 = _read_t5(folder)
    train_transformer(vae, encode_all(clip, tokenizer, t5, t5_tokenizer)).half().save_pretrained(temporary)


def write_teacher(folder: Path, out: Path) -> None:
    """Writes the pipeline of the finished parts in `folder` to `out`, with all networks in fp16."""
    vae, clip, tokenizer = _shared()
    t5_tokenizer, t5 = _read_t5(folder)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float16),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.half(),
        text_encoder=clip.half(),
        tokenizer=tokenizer,
        text_encoder_2=clip,
        tokenizer_2=tokenizer,
        text_encoder_3=t5.half(),
        tokenizer_3=t5_tokenizer,
    ).save_pretrained(out)
    for_older_libraries(out)
    for path in out.glob("*/config.json"):
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)
        if path.parent.name.startswith("text_encoder"):
            settings["dtype"] = "float32"  # transformers would load it in fp16, but diffusers loads the rest in fp32
        path.write_text(json.dumps(settings, indent=2) + "\n")


def model_card(facts: dict[str, Any], pipe: StableDiffusion3Pipeline) -> str:
    """Returns the text of README.md in the teacher's folder."""
    networks = {"transformer": pipe.transformer, "VAE": pipe.vae, "T5": pipe.text_encoder_3}
    rows, sizes, minutes, versions = card_facts(facts, networks)
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The digits world's flow-matching teacher

A small text-to-image model in Stable Diffusion 3's layout ({sizes}): handwritten digits in one of 8 colours on one of
8 backgrounds. It shares its autoencoder and its CLIP text encoder with the embedded teacher of randcond, and is for the
same tests and demos, with a transformer (MMDiT) and flow matching in place of a U-Net and discrete timesteps.

- **Training**: from random weights, seed {facts["seed"]}, {facts["threads"]} CPU threads: {facts["steps"]} steps with
  batches of {BATCH}, AdamW, learning rate 1e-3 with cosine decay, logit-normal sigma, EMA 0.997. Minutes: {minutes}.
- **Draw with** `pipe(caption, num_inference_steps=25, guidance_scale=3.0, max_sequence_length={LENGTH})`.
- **Made with** `make digits-flow-teacher`, {versions}.

Shares that the judge classifies correctly (500 captions, 25 Euler steps):

| | digit | colour | background |
|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m randcond.data.digits.train_flow_teacher OUT")
        sys.exit(0 if {"--help", "-h"} & set(sys.argv) else 2)
    main(sys.argv[1])
