"""Loads any text-to-image pipeline that diffusers supports: teachers, exported students, other systems.

In: a diffusers folder or hub id, and the name of a sampler. Out: a frozen pipeline, which `model_zoo/sampler.py` uses
to generate images.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import (
    check_files,
    class_name,
    compute_dtype,
    freeze,
    loading,
    part_dtypes,
)
from randcond.model_zoo.checkpoints.hub import local_folder
from randcond.model_zoo.cost.flops import denoiser_cost
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.export import load_denoiser
from randcond.model_zoo.families.registry import FAMILIES, PIPELINES, load_options, with_parts
from randcond.model_zoo.int8_weights import int8_kind, store_in_int8
from randcond.model_zoo.sampler import build_sampler
from randcond.model_zoo.text_encoding.options import TextOptions
from randcond.model_zoo.text_encoding.transfer import keep_on_host


def load_frozen_pipeline(
    path: Path | str,
    dtype: str,
    device: torch.device | str,
    sampler: str = "teacher",
    student: bool = False,
    text: TextOptions | None = None,
) -> Any:
    """Loads the pipeline of a folder or hub id, frozen, on `device`, with the named sampler; safetensors only.

    dtype: the setting `teacher.dtype`. student: True for a student, whose denoiser is never stored in 8 bits.
    text: settings of the text encoders; only `dtype` and `offload` count here.
    Raises UserError naming the folder if it is missing or is not a text-to-image pipeline with an autoencoder.
    """
    folder = local_folder(path)
    if not (folder / "vae" / "config.json").is_file():
        raise UserError(f"{folder}: vae/config.json is missing; expected a text-to-image pipeline with an autoencoder")
    name = class_name(folder / "model_index.json")
    check_files(folder)
    options = {"dtype": part_dtypes(folder, dtype), "use_safetensors": True}
    with loading(folder):
        if known := PIPELINES.get(str(name)):
            pipeline, family = known  # the denoiser is loaded separately: diffusers does not know SLIM's class
            pipe = pipeline.from_pretrained(folder, **options, **{**load_options(folder), family.part: None})
            pipe = with_parts(pipe, **{family.part: load_denoiser(folder / family.part, compute_dtype(dtype))})
            family.loaded(pipe)
        else:
            try:
                pipe = AutoPipelineForText2Image.from_pretrained(folder, **options)
            except ValueError as error:
                raise UserError(f"{folder}: diffusers has no text-to-image pipeline for {name} ({error})") from None
    freeze(pipe, device)
    text = text or TextOptions()
    if not student and (kind := int8_kind(dtype)):
        store_in_int8(denoiser(pipe), kind)
    if kind := text.dtype or int8_kind(dtype):
        for encoder in text_encoders(pipe):
            store_in_int8(encoder, kind)
    if text.offload:
        keep_on_host(text_encoders(pipe), device)
    pipe.scheduler = build_sampler(sampler, pipe.scheduler)
    return pipe


def denoiser(pipe: Any) -> Any:
    """Returns the denoiser of a pipeline: its U-Net or its transformer."""
    return getattr(pipe, "unet", None) or pipe.transformer


def text_encoders(pipe: Any) -> list[Any]:
    """Returns the text encoders of a pipeline."""
    return [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None]


def pipeline_size(pipe: Any) -> dict[str, int]:
    """Returns the size of a pipeline by name.

    `unet`: number of parameters of the denoiser.
    `parameters`: number of parameters of the denoiser, the text encoders and the VAE's decoder, as in Table 4.
    `macs`: MACs of one denoising step, as in Table A. Present only if the denoiser is of a known family.
    """
    network = denoiser(pipe)
    networks = (network, pipe.vae.decoder, *text_encoders(pipe))
    counts = {each: sum(p.numel() for p in each.parameters()) for each in networks}
    size = {"unet": counts[network], "parameters": sum(counts.values())}
    if isinstance(network, tuple(family.model for family in FAMILIES)):
        size["macs"] = denoiser_cost(Architecture.of(network)).macs
    return size
