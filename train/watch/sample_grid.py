"""The sample grid of a training run: images of teacher (top row) and student, for the same captions and seeds."""

import torch
from diffusers import ModelMixin
from torch import Tensor
from torchvision.utils import make_grid

from randcond.eval.images.prompts import choose_prompts
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.device.drawing import GRID
from randcond.launch.device.out_of_memory import naming_memory
from randcond.model_zoo.export import denoiser_weights, trained_student
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents
from randcond.model_zoo.teacher import Teacher
from randcond.train.engine import Engine


def grid_captions(config: Config) -> list[str]:
    """Returns the captions of the columns, half of them seen and half unseen if the evaluation has unseen captions.

    Raises UserError if the captions of the evaluation are missing or invalid.
    """
    prompts = choose_prompts(config)
    parts = list(prompts.shown(len(prompts.captions)).values())
    n = GRID // len(parts)
    return [prompts.captions[part[i * len(part) // n]] for part in parts for i in range(n)]


@naming_memory("set train.sample_every=0 to train without sample grids")
def draw_grid(config: Config, teacher: Teacher, engine: Engine, student: ModelMixin) -> Tensor:
    """Returns the image grid [3, H, W] with values in [0, 1] on rank 0.

    Every rank must call it, because the raw weights are gathered from all ranks. Rank 0 alone draws the images, except
    with a sharded teacher, whose row takes all ranks. The value on the other ranks has no meaning.
    """
    gathered = engine.gather("weights")
    networks: list[torch.nn.Module | None] = [None]
    if engine.rank == 0:
        networks.append(trained_student(student, denoiser_weights(gathered), teacher.dtype).to(teacher.device))
    elif config.engine.teacher == "replicated":
        return torch.empty(0)
    captions = grid_captions(config)
    seeds = [caption_seed(config.eval.seed, number) for number in range(len(captions))]
    protocol, tokens, rows = protocol_of(config.eval), config.teacher.text_tokens, []
    # Eager, because compiled blocks would be compiled again for the batch size of the grid while other ranks wait.
    with torch.compiler.set_stance("force_eager"):
        for network in networks:
            pipe = teacher.pipeline(protocol.sampler, network)
            settings = protocol.steps, protocol.guidance, len(captions), teacher.resolution, tokens
            latents = draw_latents(pipe, captions, seeds, *settings)
            rows.append(decode(pipe, latents))
    return make_grid(torch.cat(rows).cpu() / 2 + 0.5, nrow=GRID)
