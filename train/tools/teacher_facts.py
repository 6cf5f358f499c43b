"""What kind of teacher a diffusers folder is, in words, without its weights.

In: a folder. Out: name -> fact, for `randcond teacher check`.
"""

from collections import Counter
from pathlib import Path

from randcond.model_zoo.checkpoints.diffusers_folder import class_name
from randcond.model_zoo.checkpoints.schedule import process_of, stored_scheduler
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.networks import networks_of
from randcond.model_zoo.process.discrete_betas import DiscreteBetas
from randcond.model_zoo.students.registry import default_rule


def teacher_facts(folder: Path) -> dict[str, str]:
    """Returns name -> fact of a folder that can be a teacher."""
    networks = networks_of(folder)
    denoiser = networks.denoiser
    family = denoiser.family
    stack = family.stack(denoiser.config)
    blocks = f", {len(stack.names)} blocks" if stack else ""
    height, width = (side * networks.pixels_per_latent for side in denoiser.latent_shape[1:])
    kinds = Counter(text.kind for text in networks.text_encoders)
    encoders = " and ".join(f"{number} x {kind}" if number > 1 else kind for kind, number in kinds.items())
    process = process_of(stored_scheduler(folder), folder, family.flow)
    if isinstance(process, DiscreteBetas):
        learned = f"discrete betas, predicts {process.schedule.config.prediction_type}"
    else:
        learned = "rectified flow"
    return {
        "pipeline": str(class_name(folder / "model_index.json")),
        "denoiser": f"{family.model.__name__}, {_millions(denoiser)} parameters{blocks}",
        "images": f"{width} x {height} pixels",
        "text": f"{networks.text_length(None)} tokens, from {encoders}",
        "trained by": f"{learned}, {process.timesteps} timesteps",
        "student": f"{default_rule(denoiser)} by default; see `randcond students --teacher {folder}`",
    }


def _millions(denoiser: Architecture) -> str:
    """Returns a denoiser's number of parameters."""
    return f"{sum(p.numel() for p in denoiser.blank().parameters()) / 1e6:,.1f}M"
