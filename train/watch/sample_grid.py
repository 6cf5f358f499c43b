"""The sample grids of a training: images of teacher and student for the same captions and seeds, in RUN/grids."""

from itertools import islice
from pathlib import Path

import torch
from diffusers import ModelMixin

from randcond.data.contact_sheet import draw_comparison
from randcond.eval.images.prompts import choose_prompts
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.device.drawing import GRID
from randcond.launch.device.out_of_memory import naming_memory
from randcond.launch.runtime.files import naming_full_disk
from randcond.model_zoo.export import denoiser_weights, trained_student
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents, to_bytes
from randcond.model_zoo.teacher import Teacher
from randcond.train.engine import Engine

FOLDER = "grids"  # of a run: step-NNNNNNNN.png


def grid_bands(config: Config) -> dict[str, list[str]]:
    """Returns split -> the captions of its columns: half seen, half unseen if the evaluation has unseen captions.

    Raises UserError if the captions of the evaluation are missing or invalid.
    """
    prompts = choose_prompts(config)
    parts = prompts.shown(len(prompts.captions))
    n = GRID // len(parts)
    return {split: [prompts.captions[ids[i * len(ids) // n]] for i in range(n)] for split, ids in parts.items()}


def grid_path(run: Path, step: int) -> Path:
    """Returns the file of the sample grid after a step."""
    return run / FOLDER / f"step-{step:08d}.png"


@naming_memory("set train.sample_every=0 to train without sample grids")
def draw_grid(config: Config, teacher: Teacher, engine: Engine, student: ModelMixin, path: Path) -> None:
    """Writes the sample grid as a PNG file, with the captions above the columns.

    Every rank must call it, because the raw weights are gathered from all ranks. Rank 0 alone draws the images, except
    with a sharded teacher, whose row takes all ranks. Only rank 0 writes the file.
    """
    gathered = engine.gather("weights")
    networks: list[torch.nn.Module | None] = [None]
    if engine.rank == 0:
        networks.append(trained_student(student, denoiser_weights(gathered), teacher.dtype).to(teacher.device))
    elif config.engine.teacher == "replicated":
        return
    bands = grid_bands(config)
    captions = [caption for some in bands.values() for caption in some]
    seeds = [caption_seed(config.eval.seed, number) for number in range(len(captions))]
    protocol, tokens, rows = protocol_of(config.eval), config.teacher.text_tokens, []
    # Eager, because compiled blocks would be compiled again for the batch size of the grid while other ranks wait.
    with torch.compiler.set_stance("force_eager"):
        for network in networks:
            pipe = teacher.pipeline(protocol.sampler, network)
            settings = protocol.steps, protocol.guidance, len(captions), teacher.resolution, tokens
            latents = draw_latents(pipe, captions, seeds, *settings)
            rows.append(to_bytes(decode(pipe, latents)).cpu())
    if engine.rank == 0:
        numbers = iter(range(len(captions)))
        columns = {split: list(islice(numbers, len(some))) for split, some in bands.items()}
        shown = {name: dict(enumerate(row)) for name, row in zip(("teacher", "student"), rows, strict=True)}
        path.parent.mkdir(exist_ok=True)
        with naming_full_disk(path):
            draw_comparison(path, captions, columns, shown)
