"""Compares the family that docs/extending.md adds with its stock pipeline. Run with the page's changes on the path.

`python -m tests.support.example_family TEACHER` ends with an error at the first difference.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AuraFlowPipeline

from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.families.faults.look import check_teacher
from randcond.model_zoo.sampler import decode, draw_latents
from randcond.model_zoo.teacher import Teacher

CAPTIONS = ["A red cat on the table", "", "one two dog " * 60]
DRAWN = 2  # captions that are drawn
PIXELS = 128


@torch.no_grad()
def compare(folder: Path) -> None:
    """Raises AssertionError if conditions, predictions, latents or images differ."""
    check_teacher(folder)
    stock = AuraFlowPipeline.from_pretrained(folder)
    teacher = Teacher.load(folder, "fp32")
    condition = teacher.encode(teacher.tokenizers(CAPTIONS), torch.tensor([not caption for caption in CAPTIONS]))
    assert torch.equal(condition["encoder_hidden_states"], stock.encode_prompt(CAPTIONS)[0])

    calls: list[tuple[dict[str, Any], torch.Tensor]] = []
    stock.transformer.register_forward_hook(
        lambda module, given, options, output: calls.append(({"x": given[0], **options}, output[0])), with_kwargs=True
    )
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": PIXELS, "width": PIXELS}
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    theirs = stock(CAPTIONS[:DRAWN], generator=generators, output_type="latent", **settings).images
    shown = {key: value[:DRAWN] for key, value in condition.items()}
    for given, predicted in calls:
        ours = denoise(teacher.denoiser, given["x"], 1000 * given["timestep"], shown)
        assert torch.allclose(ours, predicted, atol=1e-6)
    pipe = teacher.pipeline("teacher")
    latents = draw_latents(pipe, CAPTIONS[:DRAWN], [1, 2], 2, 1.0, DRAWN, PIXELS)
    assert torch.allclose(latents, theirs, atol=1e-5)
    image = stock.vae.decode(theirs / stock.vae.config.scaling_factor).sample.clamp(-1, 1)
    assert torch.allclose(decode(pipe, latents), image, atol=1e-5)


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
