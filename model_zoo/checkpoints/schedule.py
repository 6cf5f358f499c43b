"""A teacher's diffusion process, out of its scheduler_config.json."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import loading, read_object
from randcond.model_zoo.process.discrete_betas import DiscreteBetas
from randcond.model_zoo.process.process import Process
from randcond.model_zoo.process.rectified_flow import RectifiedFlow


def stored_scheduler(folder: Path) -> Any:
    """Returns the scheduler of a diffusers folder, of the class that model_index.json names.

    Raises UserError if diffusers has no such class, or if its configuration is missing or damaged.
    """
    entry = read_object(folder / "model_index.json").get("scheduler")
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    kind = getattr(diffusers, name, None) if isinstance(name, str) and library == "diffusers" else None
    if kind is None:
        raise UserError(f"{folder}/model_index.json: scheduler is {entry}, expected a scheduler of diffusers")
    settings = read_object(folder / "scheduler" / "scheduler_config.json")
    with loading(folder / "scheduler"):
        return kind.from_config(settings)


def process_of(scheduler: Any, folder: Path, flow: bool = False) -> Process:
    """Returns the process of a folder's scheduler. flow: the denoiser was trained by flow matching.

    Raises UserError if the scheduler is of another process, if it shows the denoiser other times than those of its
    training, and for unknown prediction types.
    """
    file = f"{folder}/scheduler/scheduler_config.json"
    return _flow(scheduler, file) if flow else _discrete_betas(scheduler, file)


def _flow(scheduler: Any, file: str) -> Process:
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise UserError(
            f"{file}: {type(scheduler).__name__} is not for flow matching, by which this teacher was trained; expected "
            f"FlowMatchEulerDiscreteScheduler"
        )
    if scheduler.config.invert_sigmas:
        raise UserError(f"{file}: invert_sigmas is true: the denoiser is shown 1 - sigma; expected false")
    return RectifiedFlow(scheduler.config.num_train_timesteps)


def _discrete_betas(scheduler: Any, file: str) -> Process:
    config = dict(scheduler.config)
    taken = inspect.signature(type(scheduler).__init__).parameters  # a file may hold more than its class takes
    missing = {"num_train_timesteps", "beta_schedule"} - taken.keys()
    if missing:
        raise UserError(
            f"{file}: {type(scheduler).__name__} has no {', '.join(sorted(missing))}; "
            f"a teacher needs a discrete beta schedule (DDPM, DDIM, PNDM, Euler, ...)"
        )
    kind = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"{file}: prediction_type is {kind!r}, expected epsilon, v_prediction or sample")
    if config.get("timestep_type") == "continuous" and kind == "v_prediction":
        raise UserError(
            f"{file}: timestep_type is 'continuous': the U-Net is shown log sigma / 4 in place of the timestep; "
            f"expected 'discrete'"
        )
    if config.get("use_flow_sigmas"):
        raise UserError(f"{file}: use_flow_sigmas is true, so this is a flow-matching model; expected discrete betas")
    with loading(file):
        schedule = DDPMScheduler.from_config(config)
    own = getattr(scheduler, "alphas_cumprod", None)
    if own is None or own.shape != schedule.alphas_cumprod.shape or not torch.allclose(
        own.float(), schedule.alphas_cumprod.float(), atol=1e-6
    ):  # fmt: skip
        raise UserError(
            f"{file}: {type(scheduler).__name__} has other noise levels than its betas say; a teacher needs a discrete "
            f"beta schedule (DDPM, DDIM, PNDM, Euler, ...)"
        )
    return DiscreteBetas(schedule)
