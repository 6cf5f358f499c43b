"""Generates BLIP's captions of the images in a latent cache (supplement J): an image can show what its caption omits.

In: a latent cache, the teacher whose VAE decodes it, a BLIP model. Out: BLIP's captions.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from randcond.data.cache.cache_command import open_cache
from randcond.data.texts.journal import Journal
from randcond.launch.runtime.files import sha256
from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.checkpoints.hub import is_hub_id
from randcond.model_zoo.checkpoints.hub_files import hub_file
from randcond.model_zoo.sampler import decode
from randcond.model_zoo.teacher import Teacher

BATCH = 16
MAX_TOKENS = 40


def describe_images(
    cache: Path, selected: Collection[str], teacher: Path, blip: str, journal: Path
) -> dict[str, list[str]]:
    """Generates BLIP's captions (greedy) of the images of `selected` captions. Returns caption -> BLIP's captions.

    Captions without an image in the cache are not in the result. `cache`: folder of the latent cache. `teacher`:
    diffusers folder or hub id of the teacher whose VAE decodes it. `blip`: transformers folder or hub id. `journal`:
    file that keeps BLIP's captions, so that no image is captioned twice.
    Raises UserError if the cache is incomplete, or if the journal belongs to another cache or BLIP model.
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor

    captions, latents = open_cache(cache)
    locations = {int(shard.caption_ids[row]): (shard, row) for shard, row in latents}  # by caption number
    numbers = [number for number in sorted(locations) if captions[number] in selected]
    with locked(journal.parent):
        blip_captions = Journal(journal, f"{blip} on the cache {sha256(cache / 'manifest.json')[:16]}")
        todo = [number for number in numbers if str(number) not in blip_captions]
        try:
            if todo:
                if is_hub_id(blip):
                    hub_file(blip, "config.json")  # says at once why the hub does not give it
                pipe = Teacher.load(teacher, "fp32", device()).pipe
                model = BlipForConditionalGeneration.from_pretrained(blip, use_safetensors=True).to(device()).eval()
                processor = BlipProcessor.from_pretrained(blip)
                with Progress(total=len(numbers), initial=len(numbers) - len(todo), desc="BLIP", unit="image") as bar:
                    for start in range(0, len(todo), BATCH):
                        chunk = todo[start : start + BATCH]
                        values = np.stack([shard.latent(row) for shard, row in (locations[number] for number in chunk)])
                        images = _decode(pipe, torch.from_numpy(values))
                        for number, text in zip(chunk, _describe(model, processor, images), strict=True):
                            blip_captions.add(str(number), text)
                        bar.update(len(chunk))
        finally:
            blip_captions.close()
    texts: dict[str, list[str]] = {}
    for number in numbers:
        texts.setdefault(captions[number], []).append(blip_captions.answers[str(number)])
    return texts


def _decode(pipe: Any, latents: Tensor) -> list[Image.Image]:
    """Decodes latents [B, C, h, w] to RGB images."""
    decoded = (decode(pipe, latents.float().to(pipe.device)) / 2 + 0.5).clamp(0, 1)  # [B, 3, H, W]
    pixels = (255 * decoded).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in pixels]


@torch.inference_mode()
def _describe(model: Any, processor: Any, images: list[Image.Image]) -> list[str]:
    pixels = processor(images=images, return_tensors="pt").to(model.device)
    tokens = model.generate(**pixels, max_new_tokens=MAX_TOKENS, num_beams=1, do_sample=False)
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
