"""What BLIP sees in the images of a cache (supplement J): a caption names a concept less often than its image shows it.

In: a latent cache, its teacher's VAE, a BLIP model (diffusers and transformers folders or hub ids). Out: captions.
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
from randcond.model_zoo.sampler import decode
from randcond.model_zoo.teacher import Teacher

BATCH = 16
MAX_TOKENS = 40


def describe_images(
    cache: Path, wanted: Collection[str], teacher: Path, blip: str, journal: Path
) -> dict[str, list[str]]:
    """Caption -> BLIP's captions, greedy, of the images that a cache holds for it; captions without one are left out.

    What the journal has is not done again. Raises UserError naming a cache or a journal that is not fit.
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor

    captions, latents = open_cache(cache)
    images = {int(shard.caption_ids[row]): (shard, row) for shard, row in latents}  # by the number of their caption
    shown = [number for number in sorted(images) if captions[number] in wanted]
    with locked(journal.parent):
        kept = Journal(journal, f"{blip} on the cache {sha256(cache / 'manifest.json')[:16]}")
        left = [number for number in shown if str(number) not in kept]
        try:
            if left:
                pipe = Teacher.load(teacher, "fp32", device()).pipe
                model = BlipForConditionalGeneration.from_pretrained(blip, use_safetensors=True).to(device()).eval()
                processor = BlipProcessor.from_pretrained(blip)
                with Progress(total=len(shown), initial=len(shown) - len(left), desc="BLIP", unit="image") as bar:
                    for start in range(0, len(left), BATCH):
                        chunk = left[start : start + BATCH]
                        values = np.stack([shard.latent(row) for shard, row in (images[number] for number in chunk)])
                        pictures = _images(pipe, torch.from_numpy(values))
                        for number, text in zip(chunk, _describe(model, processor, pictures), strict=True):
                            kept.add(str(number), text)
                        bar.update(len(chunk))
        finally:
            kept.close()
    texts: dict[str, list[str]] = {}
    for number in shown:
        texts.setdefault(captions[number], []).append(kept.answers[str(number)])
    return texts


def _images(pipe: Any, latents: Tensor) -> list[Image.Image]:
    decoded = (decode(pipe, latents.float().to(pipe.device)) / 2 + 0.5).clamp(0, 1)  # [B, 3, H, W]
    pixels = (255 * decoded).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(each) for each in pixels]


@torch.inference_mode()
def _describe(model: Any, processor: Any, images: list[Image.Image]) -> list[str]:
    pixels = processor(images=images, return_tensors="pt").to(model.device)
    tokens = model.generate(**pixels, max_new_tokens=MAX_TOKENS, num_beams=1, do_sample=False)
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
