"""Trains the judge and the teacher of the digits world: `python -m randcond.data.digits.train_teacher OUT`.

In: the handwriting of `world`. Out: OUT/judge and OUT/teacher. OUT/teacher is an ordinary Stable Diffusion folder of
diffusers (AutoencoderKL, CLIPTokenizer, CLIPTextModel, UNet2DConditionModel, DDIM scheduler) with a model card.
Training starts from random weights and runs on the CPU, with a fixed seed and number of threads. Finished parts stay
in OUT. An interrupted run resumes with the first unfinished part.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from randcond.data.digits.judge import Judge
from randcond.data.digits.tokenizer import build_tokenizer
from randcond.data.digits.train_parts import (
    BATCH,
    JUDGE_STEPS,
    SEED,
    TEXT_STEPS,
    THREADS,
    UNET_STEPS,
    VAE_STEPS,
    accuracy,
    held_out,
    rebuild,
    score_teacher,
    teacher_schedule,
    train_judge,
    train_text_and_unet,
    train_vae,
)
from randcond.launch.runtime.files import atomic_write, write_json, write_text
from randcond.launch.runtime.logs import start_console
from randcond.model_zoo.importing.older_libraries import for_older_libraries


class Parts:
    """Trains each part once and records its training time, so that an interrupted run resumes with the next part."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def make(self, name: str, train: Callable[[Path], None], folder: Path) -> None:
        """Calls `train` with a temporary folder, then renames it to `folder`. Does nothing if `folder` exists."""
        if folder.is_dir():
            return
        start = time.monotonic()
        with atomic_write(folder) as temporary:
            train(temporary)
        self.seconds[name] = round(time.monotonic() - start, 1)
        write_json(self.path, self.seconds)


def main(out: str) -> None:
    """Trains the parts that are missing in OUT, scores the teacher, and writes training.json and the model card."""
    folder = Path(out)
    torch.set_num_threads(THREADS)
    start_console()
    print(f"training the digits judge and teacher in {folder}: about 20 minutes on two cores")
    print("stop with Ctrl-C; the same command resumes with the first unfinished part")
    parts = Parts(folder)
    parts.make("judge", lambda temporary: train_judge().save(temporary), folder / "judge")
    judge = Judge.load(folder / "judge")
    parts.make("autoencoder", lambda temporary: train_vae().half().save_pretrained(temporary), folder / "vae")
    parts.make("text encoder and U-Net", lambda temporary: train_teacher(folder / "vae", temporary), folder / "teacher")

    pipe = StableDiffusionPipeline.from_pretrained(folder / "teacher", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images, labels = held_out()
    rebuilt = torch.cat([rebuild(pipe.vae, part) for part in images.split(250)])
    scores = {
        "judge, held-out handwriting": accuracy(judge.classify(images)[0], labels),
        "autoencoder, held-out handwriting rebuilt": accuracy(judge.classify(rebuilt)[0], labels),
        **{f"teacher, guidance {scale}": score_teacher(pipe, judge, scale) for scale in (1.5, 3.0, 5.0)},
    }
    facts: dict[str, Any] = {
        "steps": UNET_STEPS,
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
    print(f"trained in {facts['seconds'] / 60:.1f} minutes: {parts.seconds}")
    print(f"use it with teacher.path={folder / 'teacher'}")


def train_teacher(vae_folder: Path, folder: Path) -> None:
    """Trains text encoder and U-Net, and writes the complete Stable Diffusion folder.

    The U-Net and the VAE are stored in fp16.
    """
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).eval()
    vae.register_to_config(_name_or_path="")  # the shipped folder must not contain local paths
    tokenizer = build_tokenizer()
    text_encoder, unet = train_text_and_unet(vae, tokenizer)
    scheduler = DDIMScheduler.from_config(teacher_schedule().config, set_alpha_to_one=False)  # as in SD's own folder
    StableDiffusionPipeline(
        vae.half(), text_encoder, tokenizer, unet.half(), scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    for_older_libraries(folder)


def card_facts(facts: dict[str, Any], networks: dict[str, Any]) -> tuple[str, str, str, str]:
    """Returns what a teacher's card says: rows of scores, sizes of networks, minutes of training, versions."""
    rows = "\n".join(
        f"| {name} | {shares['digit']:.1%} | {shares['colour']:.1%} | {shares['background']:.1%} |"
        for name, shares in facts["scores"].items()
    )
    sizes = (f"{name} {sum(p.numel() for p in each.parameters()) / 1e6:.2f}M" for name, each in networks.items())
    minutes = (f"{name} {seconds / 60:.1f}" for name, seconds in facts["seconds_by_part"].items())
    versions = (f"{name} {number}" for name, number in facts["versions"].items())
    return rows, ", ".join(sizes), ", ".join(minutes), ", ".join(versions)


def model_card(facts: dict[str, Any], pipe: StableDiffusionPipeline) -> str:
    """Returns the text of README.md in the teacher's folder."""
    networks = {"U-Net": pipe.unet, "VAE": pipe.vae, "text encoder": pipe.text_encoder}
    rows, sizes, minutes, versions = card_facts(facts, networks)
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The digits teacher

A small text-to-image latent diffusion model in Stable Diffusion's layout ({sizes}): handwritten digits in one of 8
colours on one of 8 backgrounds. It is the embedded teacher of randcond, for tests and for the demo.

- **Data**: scikit-learn's `load_digits` (UCI optical recognition of handwritten digits, 1,797 scans of 8x8),
  upsampled, slightly warped and coloured; 20% of the scans are held out.
- **Training**: from random weights, seed {facts["seed"]}, {facts["threads"]} CPU threads: judge {JUDGE_STEPS} steps,
  autoencoder {VAE_STEPS} steps, text encoder alone {TEXT_STEPS} steps (it learns to separate its words), then text
  encoder and U-Net {UNET_STEPS} steps with batches of {BATCH}, AdamW, learning rate 1e-3 with cosine decay, EMA 0.997.
  Minutes: {minutes}.
- **Schedule**: scaled_linear betas 0.00085 to 0.012, 1,000 steps, epsilon prediction.
- **Made with** `make digits-teacher`, {versions}.

Shares that the judge classifies correctly (2,000 held-out images; 500 captions, generated with 25 DDIM steps):

| | digit | colour | background |
|---|---|---|---|
{rows}

The judge is a classifier trained on the same training scans, never on generated images. It is stored in the folder
next to the teacher.
"""


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m randcond.data.digits.train_teacher OUT")
        sys.exit(0 if {"--help", "-h"} & set(sys.argv) else 2)
    main(sys.argv[1])
