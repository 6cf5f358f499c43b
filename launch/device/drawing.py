"""The memory of caching and evaluation, and the largest compute batch that fits.

In: an experiment, its costs, a cluster. Out: bytes per GPU by part. The networks that score images are counted from
their published sizes, or from the size of a local file.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from randcond.launch.config.sections import Config
from randcond.launch.planning.costs import Cluster, Sizes, weight_bytes
from randcond.launch.planning.fitting import fits, training_memory
from randcond.launch.planning.planner import images_drawn
from randcond.model_zoo.cost.drawing_memory import decoder_peak, denoiser_peak, encoder_peak
from randcond.model_zoo.sampler import DECODED_AT_ONCE

DrawingStage = Literal["cache", "eval"]
LARGEST = 64  # samples at once; more are no faster
GRID = 8  # captions of a sample grid of the training (`train.sample_every`), all at once
INCEPTION = {"fid", "is", "kid", "precision-recall"}  # the metrics that read its features
# Bytes of the networks that read features, in fp32; and what Inception holds per image at its peak.
INCEPTION_WEIGHTS, INCEPTION_PEAK = 95e6, 40e6
SCORING = {  # metric -> of its network
    "clip": 5.5e9,
    "fd-dinov2": 1.2e9,
    "dino-mmd": 1.2e9,
    "cmmd": 1.7e9,
    "hps": 3.9e9,
    "pickscore": 3.9e9,
    "imagereward": 1.8e9,
}
JUDGE = 18e9  # of GenEval 2: Qwen3-VL-8B in bf16, and what it holds while it reads an image
GENEVAL = 5e9  # Mask2Former and CLIP ViT-L/14 in fp32, and what they hold for four images
COMPBENCH = {"blip": 3e9, "clip": 0.7e9, "detector": 3e9}  # in fp32, and what they hold for 16 images: assumed
STATE = ("student weights", "gradients", "optimizer, fp32 weights, EMA", "reduction buckets")  # stays between steps


def drawing_memory(config: Config, sizes: Sizes, cluster: Cluster, stage: DrawingStage, batch: int) -> dict[str, int]:
    """Returns the bytes per GPU of caching or evaluation, by part. `batch`: samples at once.

    `sizes`: of the images of this stage, see counted().
    """
    low = torch.float32 if config.teacher.dtype == "fp32" else torch.bfloat16
    vae = torch.float32 if sizes.upcasts_vae else low
    pixels = sizes.latent_shape[-1] * sizes.pixels_per_latent  # of an image's side
    memory = {
        "denoiser": sizes.teacher_bytes(config.teacher.dtype),
        "text encoders and VAE": sizes.text_bytes(config.teacher) + vae.itemsize * sizes.vae,
    }
    if stage == "cache" and config.cache.images:
        memory["encoding"] = batch * encoder_peak(sizes.networks.vae, pixels, vae)
    else:  # classifier-free guidance runs every sample twice at once
        memory["drawing"] = 2 * batch * denoiser_peak(sizes.networks.denoiser, low)
    if stage == "eval":
        at_once = min(batch, max(1, DECODED_AT_ONCE // pixels**2))
        memory["drawing"] = max(memory["drawing"], at_once * decoder_peak(sizes.networks.vae, sizes.vae_side, vae))
        memory["scoring"] = _scoring(config, batch)
    return memory | {"CUDA, NCCL, slack": int(1e9 * cluster.gpu.overhead_gb)}


def during_training(config: Config) -> Config:
    """Returns the configuration of the evaluations during a training: they draw no benchmark."""
    ev = config.eval
    without = {name: type(getattr(ev, name))() for name in ("compbench", "geneval", "geneval2")}
    return replace(config, eval=replace(ev, **without))


def held_by_training(config: Config, sizes: Sizes, cluster: Cluster) -> int:
    """Returns the bytes per GPU that a training holds beside its evaluations (`train.eval_every`); 0 without them.

    `sizes`: of the training. What evaluations need themselves, such as the teacher, is in drawing_memory().
    """
    return _held(config, sizes, cluster) if config.train.eval_every else 0


def grid_memory(config: Config, sizes: Sizes, cluster: Cluster) -> int:
    """Returns the bytes per GPU of a training while it draws a sample grid (`train.sample_every`); 0 without grids.

    `sizes`: of the training.
    """
    if not config.train.sample_every:
        return 0
    drawing = drawing_memory(config, sizes, cluster, "eval", GRID)
    return _held(config, sizes, cluster) + sum(size for part, size in drawing.items() if part != "scoring")


def _held(config: Config, sizes: Sizes, cluster: Cluster) -> int:
    memory, dtype = training_memory(config, sizes, cluster), config.teacher.dtype
    teacher = memory["teacher denoiser"] - sizes.teacher_bytes(dtype)  # less if it is sharded
    drawn = weight_bytes(dtype) * sizes.student.parameters  # the student whose images are drawn
    return sum(memory[part] for part in STATE) + teacher + drawn


def largest_batch(config: Config, sizes: Sizes, cluster: Cluster, stage: DrawingStage, beside: int = 0) -> int | None:
    """Returns the largest compute batch that fits a GPU, None if not even one sample does.

    A batch for a cache divides `cache.shard_size`. No batch is larger than the number of images: it would be padded.
    `beside`: bytes that are taken already.
    """
    images = config.cache.size if stage == "cache" else images_drawn(config)
    for batch in range(max(1, min(LARGEST, images)), 0, -1):
        whole = stage == "eval" or config.cache.shard_size % batch == 0
        if whole and fits({**drawing_memory(config, sizes, cluster, stage, batch), "beside": beside}, cluster):
            return batch
    return None


def largest_eval_batch(config: Config, sizes: Sizes, cluster: Cluster, beside: int) -> int | None:
    """Returns the largest compute batch of an experiment's evaluations, None if not even one sample fits.

    Evaluations during the training share it, so it fits these, too. `beside`: bytes that the training holds then.
    """
    after = largest_batch(config, sizes, cluster, "eval")
    if not beside or not after:
        return after
    during = largest_batch(during_training(config), sizes, cluster, "eval", beside)
    return min(after, during) if during else None


def _scoring(config: Config, batch: int) -> int:
    """Returns the bytes of the networks that score images."""
    ev, total = config.eval, 0.0
    metrics = set(ev.metrics)
    if metrics & INCEPTION:
        total += INCEPTION_WEIGHTS + batch * INCEPTION_PEAK
    local = {"clip": ev.clip_weights, "fd-dinov2": ev.dino, "dino-mmd": ev.dino, "hps": ev.hps}
    if "fd-dinov2" in metrics:
        metrics.discard("dino-mmd")  # the same network
    total += sum(_weights(local.get(metric), SCORING[metric]) for metric in metrics & SCORING.keys())
    if ev.compbench.lists:
        total += sum(_weights(getattr(ev.compbench, name), assumed) for name, assumed in COMPBENCH.items())
    if ev.geneval.prompts:
        total += GENEVAL
    if ev.geneval2.prompts:
        total += _weights(ev.geneval2.judge, JUDGE)
    return int(total)


def _weights(path: str | None, assumed: float) -> float:
    """Returns the bytes of a local file or folder of weights, `assumed` if there is none."""
    if not path:
        return assumed
    where = Path(path)
    files = [where] if where.is_file() else where.glob("*.safetensors")
    return sum(file.stat().st_size for file in files) or assumed
