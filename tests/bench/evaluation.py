"""Times scoring and one-pass evaluation, and measures memory (`make bench`, `make bench-eval`).

It measures on the embedded teacher, with scoring networks of the published architectures and random weights: the time
that scoring adds to drawing; our one pass against separate tools, one after the other; the memory while many images
are evaluated. `--images N`: the images of the first two. `--many N`: the images for the memory (0: not measured).
`--rounds N`: the rounds of the first.
"""

import csv
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3

from randcond.eval.evaluate import EvaluatedModel, draw, prepare, references, score
from randcond.eval.features.load import load_extractors
from randcond.eval.images.generate import Task
from randcond.eval.images.protocol_images import from_picture, to_picture
from randcond.eval.scores.real_images import statistics_of_folder
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.pipelines import load_frozen_pipeline
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents, to_bytes
from tests.bench.results import interval, save
from tests.support.networks import (
    bert_folder,
    clip_folder,
    digit_images,
    dino_folder,
    imagereward_weights,
    inception_weights,
    pickscore_folder,
    save_pictures,
)

SYSTEM = "base: digits\neval: {of: [teacher], batch: 32, cost: false}\npaths: {reference: OUT}\n"


def configured(folder: Path, *words: str) -> Config:
    path = folder / "system.yaml"
    path.write_text(SYSTEM.replace("OUT", str(folder / "out")))
    return load_config(str(path), words)


def captions(folder: Path, count: int) -> str:
    """Writes a list of `count` captions with image names; captions may repeat. Returns the override that names it."""
    known = (resolve_path("package:data/digits/captions.txt")).read_text().splitlines()
    path = folder / f"list-{count}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "caption"))
        writer.writerows((f"{number:06d}.png", known[number % len(known)]) for number in range(count))
    return f"eval.captions=[{path}]"


def loaded(config: Config) -> EvaluatedModel:
    pipe = load_frozen_pipeline(resolve_path(config.teacher.path), "fp32", device(), "ddim")
    return EvaluatedModel("teacher", pipe, "", "raw", "fp32")


def scoring_share(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Returns the time of drawing with the digits' scores over the time of drawing alone, in interleaved rounds."""
    config = configured(folder, "eval.size=null", captions(folder, images))
    system, task = loaded(config), prepare(config)
    bare, ratios = replace(task, extractors={}), []
    for number in range(rounds):
        seconds = {}
        sides = [("with", task), ("bare", bare)]
        for name, each in sides if number % 2 else sides[::-1]:
            began = time.perf_counter()
            draw(system, each, folder / f"{name}-{number}", "drawing")
            if each is task:
                score(task, {}, folder / f"{name}-{number}")
            seconds[name] = time.perf_counter() - began
        ratios.append(seconds["with"] / seconds["bare"])
    middle, low, high = interval(ratios)
    print(
        f"scored / drawn alone      {middle:8.3f}   ({low:.3f} to {high:.3f}, 95 % interval of {rounds} rounds)",
        flush=True,
    )
    return {"median": middle, "low": low, "high": high, "rounds": rounds, "images": images}


def one_pass(folder: Path, images: int) -> dict[str, Any]:
    """Returns the time of separate tools over the time of one pass that draws and computes all metrics.

    FID and IS are pytorch-fid's and torch-fidelity's commands. Each other score is read as its authors' script does it:
    image file after image file. Each side runs once. Loading the networks is included on both sides, because a user
    waits for it. With more images it matters less.
    """
    weights = inception_weights(folder / "inception.pth", digit_images(16))
    real = save_pictures(folder / "real", digit_images(images, 64, seed=3))
    clip, bert = clip_folder(folder / "clip"), bert_folder(folder / "bert", "a red three on black")
    words = [f"inception={weights}", f"clip=local-dir:{clip}", f"hps=local-dir:{clip}", f"cmmd={clip}", f"bert={bert}"]
    words += [f"imagereward={imagereward_weights(folder / 'reward.safetensors', 12)}"]
    words += [f"pickscore={pickscore_folder(folder / 'pickscore')}", f"dino={dino_folder(folder / 'dino')}"]
    words += ["metrics=[fid,is,fd-dinov2,cmmd,clip,hps,pickscore,imagereward]", "protocol=sdxl", "sampler=ddim"]
    words += ["steps=10", "guidance=3.0", "size=null", f"statistics={folder / 'real-256'}"]
    config = configured(folder, captions(folder, images), *[f"eval.{word}" for word in words])
    statistics_of_folder(real, folder / "real-256", config.eval, None, 256, jpeg=True)
    system = loaded(config)

    began = time.perf_counter()
    task = prepare(config)
    draw(system, task, folder / "one-pass", "one pass")
    ours = score(task, references(config, task), folder / "one-pass")["splits"]["all"]
    spent = time.perf_counter() - began

    began = time.perf_counter()
    drawn = drawn_to_files(system, task, folder / "files")
    drawing = time.perf_counter() - began
    theirs = {"fid": fid_of_files(folder, drawn, weights)}
    for name in ("clip", "hps", "pickscore", "imagereward", "cmmd-clip", "dino"):
        theirs |= scores_of_files(name, config, drawn, task.prompts.captions)
    tools = time.perf_counter() - began
    ratio = tools / spent
    print(f"tool after tool / one pass{ratio:8.3f}   {tools:.0f} s (drawing to files: {drawing:.0f} s) / {spent:.0f} s")
    both = {name: [ours[name], value] for name, value in theirs.items() if name in ours}
    for name, (one, other) in both.items():
        print(f"          {name}: {one:.6g} and {other:.6g}", flush=True)  # of FID: the two resize differently
    return {"median": ratio, "rounds": 1, "images": images, "seconds": [tools, spent], "scores": both}


def fid_of_files(folder: Path, drawn: Path, weights: Path) -> float:
    """Returns pytorch-fid's FID of files, and runs torch-fidelity's command for IS."""
    cached = folder / "torch" / "hub" / "checkpoints" / Path(FID_WEIGHTS_URL).name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(weights.read_bytes())
    torch.hub.set_dir(str(folder / "torch" / "hub"))
    model = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).to(device())
    mean, covariance = fid_score.compute_statistics_of_path(str(drawn), model, 32, 2048, device(), 0)
    with np.load(folder / "real-256" / "all.npz") as moments:
        fid = fid_score.calculate_frechet_distance(mean, covariance, moments["mu"], moments["sigma"])
    where = ["--gpu", "0"] if torch.cuda.is_available() else ["--cpu"]
    fidelity = [sys.executable, "-m", "torch_fidelity.fidelity", "--isc", "--input1", str(drawn), *where, "--silent"]
    fidelity += ["--batch-size", "32", "--no-cache", "--feature-extractor-weights-path", str(weights)]
    subprocess.run(fidelity, check=True, capture_output=True)
    return float(fid)


def scores_of_files(name: str, config: Config, drawn: Path, texts: list[str]) -> dict[str, float]:
    """Returns the mean of what a network reads from files, one after the other; nothing of what has no mean."""
    extractor, found = load_extractors([name], config.eval, device())[name], []
    for path, text in zip(sorted(drawn.iterdir()), texts, strict=True):
        with Image.open(path) as picture:
            image = from_picture(picture.convert("RGB"))
        found.append(extractor.read(image[None], [text]))
    return {key: torch.cat([each[key] for each in found]).mean().item() for key in found[0] if found[0][key].ndim == 1}


def drawn_to_files(system: EvaluatedModel, task: Task, folder: Path) -> Path:
    """Draws the images to files with the protocol's steps: JPEG, resize, JPEG. Returns the folder."""
    (folder / "drawn").mkdir(parents=True)
    (folder / "256").mkdir()
    ev, protocol, texts = task.ev, task.protocol, task.prompts.captions
    for start in range(0, len(texts), ev.batch):
        ids = range(start, min(start + ev.batch, len(texts)))
        seeds = [caption_seed(ev.seed, number) for number in ids]
        said = [texts[number] for number in ids]
        latents = draw_latents(system.pipe, said, seeds, protocol.steps, protocol.guidance, ev.batch)
        for number, image in zip(ids, to_bytes(decode(system.pipe, latents)), strict=True):
            to_picture(image).save(folder / "drawn" / f"{number:06d}.jpg")
    for path in sorted((folder / "drawn").iterdir()):
        Image.open(path).resize((256, 256)).save(folder / "256" / path.name)
    return folder / "256"


def memory(folder: Path, images: int) -> list[float]:
    """Returns the resident memory in MB: the peak in each tenth of the drawing, and the value after scoring."""
    clip = clip_folder(folder / "many-clip")
    words = [f"eval.clip=local-dir:{clip}", f"eval.hps=local-dir:{clip}", "eval.metrics=[digits,clip,hps]"]
    words += ["eval.size=null", "eval.steps=2", "eval.guidance=1.0"]
    config = configured(folder, captions(folder, images), *words)
    seen: list[float] = []
    mine = psutil.Process()
    system = replace(loaded(config), beat=lambda: seen.append(mine.memory_info().rss / 1e6))
    task = prepare(config)
    draw(system, task, folder / "many", "many images")
    tenth = max(1, len(seen) // 10)
    marks = [max(seen[start : start + tenth]) for start in range(0, len(seen), tenth)]
    score(task, {}, folder / "many")
    after = mine.memory_info().rss / 1e6
    said = " ".join(f"{mark:.0f}" for mark in marks)
    print(f"memory in MB while {images:,} images are drawn, by tenths: {said}; after scoring: {after:.0f}", flush=True)
    return [*marks, after]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # like a rank of the embedded world; on a busy machine, two would wait for each other
    with TemporaryDirectory() as folder:
        if asked.many:  # first, because memory that the others freed would hide its growth
            save(f"evaluation-memory-{asked.many}", {"memory_mb": memory(Path(folder), asked.many)})
        found = {"scored / drawn alone": scoring_share(Path(folder), asked.images, asked.rounds)}
        found["tool after tool / one pass"] = one_pass(Path(folder), asked.images)
    save(f"evaluation-{asked.images}", found)  # a file per number of images, because the ratios depend on it


if __name__ == "__main__":
    main()
