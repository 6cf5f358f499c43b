"""Draws one image with a pipeline, in this process or in a new one without randcond."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def draw_here(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red two", num_inference_steps=3, generator=generator, output_type="np").images


def draw_elsewhere(folder: Path, out: Path, pipeline: str = "StableDiffusionPipeline") -> np.ndarray:
    """Draws the image of draw_here() in a new process that imports diffusers but not randcond; returns the image."""
    code = (
        f"import sys, torch, numpy; from diffusers import {pipeline}\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"pipe = {pipeline}.from_pretrained(sys.argv[1])\n"
        "image = pipe('a red two', num_inference_steps=3, output_type='np',\n"
        "             generator=torch.Generator().manual_seed(0)).images\n"
        "numpy.save(sys.argv[2], image)\n"
        "assert not [name for name in sys.modules if name.startswith('randcond')]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(out)], check=True, cwd="/")
    return np.load(out)
