"""The sizes to time: student, teacher, batch and engine settings by name, on a GPU those of the paper."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from tests.bench.results import bf16_in_hardware
from tests.support import shaped, shaped_transformers

MID = {"block_out_channels": (64, 128, 256, 256), "attention_head_dim": 8, "norm_num_groups": 32, "sample_size": 32}


@dataclass(frozen=True)
class Size:
    """One experiment to time. `layout`: the layout of a teacher with random weights; empty: the embedded teacher."""

    rule: str
    batch: int  # samples per step, in one micro-batch
    published_micro: int = 0  # of the published recipe, where the authors' batch does not fit; 0: ours is timed alone
    layout: str = ""
    tiny: bool = False
    bf16: bool = False  # also on a CPU with bf16 in hardware: faster than fp32 at these widths
    unet: dict[str, Any] = field(default_factory=dict)


SIZES = {
    "world": Size("block-base", batch=32, published_micro=16),
    "mid": Size("block-base", batch=32, published_micro=16, layout="sd-v1-4", tiny=True, bf16=True, unet=MID),
    "b-base": Size("block-base", batch=64, published_micro=16, layout="sd-v1-4"),
    "b-tiny": Size("block-tiny", batch=64, published_micro=16, layout="sd-v1-4"),
    "c-micro": Size("channel-micro", batch=64, published_micro=16, layout="sd-v1-4"),
    "koala-700m": Size("koala-700m", batch=8, published_micro=4, layout="sdxl"),
    "pixart-14": Size("depth-14", batch=64, layout="pixart-sigma-512"),
    "sd35-12": Size("depth-12", batch=32, layout="sd35-medium"),
}
TINY_RULES = {"depth-14": "depth-3", "depth-12": "depth-3"}  # the tiny teachers have six blocks
TEACHERS = Path("runs/bench/teachers")
ON_CPU = ("world", "mid")
ON_GPU = ("b-base", "b-tiny", "c-micro", "koala-700m")


def default_sizes() -> list[str]:
    """Returns the sizes that suit this machine, by name."""
    return list(ON_GPU if torch.cuda.is_available() else ON_CPU)


def configured(name: str, folder: Path, words: list[str], rehearsed: bool = False) -> Config:
    """Returns the experiment of a size. Makes its teacher in `folder` if it is not there.

    On a CPU it runs in the faster of fp32 and bf16. On a GPU it has the switches that docs/speed.md lists for the
    tables. `rehearsed`: with a tiny teacher in the same layout, two samples per step.
    """
    size = SIZES[name]
    rule, batch = (TINY_RULES.get(size.rule, size.rule), 2) if rehearsed else (size.rule, size.batch)
    fixed = [f"student.rule={rule}", "engine.processes=1", f"train.global_batch={batch}"]
    if size.layout:
        tiny = size.tiny or rehearsed
        teacher = folder / f"{size.layout}-{'tiny' if rehearsed else 'mid'}" if tiny else folder / size.layout
        if not (teacher / "model_index.json").is_file():
            if size.layout in shaped_transformers.SCALING:
                shaped_transformers.build(size.layout, teacher, tiny, device())
            else:
                shaped.build(size.layout, teacher, tiny, unet={} if rehearsed else size.unet, where=device())
        fixed.append(f"teacher.path={teacher}")
    if size.layout == "sd35-medium":
        fixed.append(f"cache.resolution={64 if rehearsed else 512}")  # half of the teacher's own
    if torch.cuda.is_available() or (size.bf16 and bf16_in_hardware()):
        fixed += ["teacher.dtype=bf16", "engine.precision=bf16"]
    if torch.cuda.is_available():
        fixed += ["engine.compile=whole", "engine.channels_last=true", "engine.teacher_graph=true"]
        fixed += ["cache.compile=whole", "train.workers=2"]
    return load_config("demo-with", [*fixed, f"engine.threads={torch.get_num_threads()}", *words])
