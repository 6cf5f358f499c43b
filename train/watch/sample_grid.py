"""The grid one looks at while a student trains: the same captions and seeds, teacher above, student below."""

import torch
from torch import Tensor
from torchvision.utils import make_grid

from randcond.eval.images.prompts import choose_prompts
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.model_zoo.export import student_unet, unet_weights
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents
from randcond.model_zoo.teacher import Teacher
from randcond.train.engine import Engine

COLUMNS = 8


def grid_captions(config: Config) -> list[str]:
    """Captions for the columns, evenly out of the evaluation's seen and, where there are any, unseen ones.

    Raises UserError as `choose_prompts` does.
    """
    prompts = choose_prompts(config)
    parts = list(prompts.shown(len(prompts.captions)).values())
    n = COLUMNS // len(parts)
    return [prompts.captions[part[i * len(part) // n]] for part in parts for i in range(n)]


def draw_grid(config: Config, teacher: Teacher, engine: Engine, unet: torch.nn.Module) -> Tensor:
    """Image grid [3, H, W] in [0, 1]; gathers the raw weights, so every rank must call it.

    Only the first rank draws, but a sharded teacher's row takes all of them.
    """
    gathered = engine.gather("weights")
    networks: list[torch.nn.Module | None] = [None]
    if engine.rank == 0:
        networks.append(student_unet(unet, unet_weights(gathered), teacher.dtype).to(teacher.device))
    elif config.engine.teacher == "replicated":
        return torch.empty(0)
    captions = grid_captions(config)
    seeds = [caption_seed(config.eval.seed, number) for number in range(len(captions))]
    protocol, rows = protocol_of(config.eval), []
    # Eager: the grid's batch size would have compiled blocks compiled again, while the other ranks wait.
    with torch.compiler.set_stance("force_eager"):
        for network in networks:
            pipe = teacher.pipeline(protocol.sampler, network)
            latents = draw_latents(pipe, captions, seeds, protocol.steps, protocol.guidance, len(captions))
            rows.append(decode(pipe, latents))
    return make_grid(torch.cat(rows).cpu() / 2 + 0.5, nrow=COLUMNS)
