"""A training step with the published recipe's settings, as an ordinary training script does it.

The student has fp32 weights under fp16 autocast (on a CPU: bf16 or none). Teacher and text encoder are in fp16
themselves. Activation checkpointing is on, AdamW is torch's default, losses are gathered and read at every micro-batch,
an EMA follows all weights, and the VAE stays in memory. The authors' GPUs took 64 samples at once (SDXL: 8). Where
these do not fit, micro-batches are accumulated.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from randcond.data.stream.batch import Batch
from randcond.launch.config.sections import Config
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.students.features import TappedStudent
from randcond.model_zoo.teacher import Teacher


def published_step(
    config: Config, teacher: Teacher, student: TappedStudent, micro: int, low: torch.dtype
) -> Callable[[Any], float]:
    """Returns a function that does one optimizer step over a batch of the stream and returns its loss.

    `micro`: samples of a micro-batch; `low`: the dtype of autocast, fp32 for none.
    """
    device = teacher.device
    student.network.enable_gradient_checkpointing()
    captured: dict[str, torch.Tensor] = {}
    modules = dict(teacher.denoiser.named_modules())

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            captured[name] = output[0] if isinstance(output, tuple) else output

        return hook

    for name in student.teacher_names:
        modules[name].register_forward_hook(keep(name))
    train = config.train
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=train.lr, betas=(train.betas[0], train.betas[1]), weight_decay=train.weight_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=low == torch.float16)
    ema = [parameter.detach().clone() for parameter in student.parameters()]
    zero = torch.zeros((), device=device)

    def step(batch: Batch) -> float:
        size, seen = len(batch), 0.0
        for start in range(0, size, micro):
            part = slice(start, start + micro)
            latents, timesteps = batch.latents[part].to(device, low), batch.timesteps[part].to(device)
            noise = torch.randn_like(latents)
            noised = teacher.add_noise(latents, noise, timesteps)
            condition = teacher.encode({name: ids[part] for name, ids in batch.token_ids.items()})
            with torch.no_grad():
                target = denoise(teacher.denoiser, noised, timesteps, condition)
            with torch.autocast(device.type, low, enabled=low != torch.float32):
                prediction, features = student(noised, timesteps, condition)
            task = zero * F.mse_loss(prediction.float(), noise.float())
            output = F.mse_loss(prediction.float(), target.float())
            pairs = zip(features, student.teacher_names, strict=True)
            feature = sum((F.mse_loss(ours.float(), captured[name].float()) for ours, name in pairs), start=zero)
            loss = task + output + feature
            scaler.scale(loss / (size // micro)).backward()
            for value in (loss, task, output, feature):
                gathered = value.detach().repeat(micro)
                if dist.is_initialized():
                    dist.all_reduce(gathered)
                seen += gathered.mean().item() / (size // micro)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(student.parameters(), train.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, parameter in zip(ema, student.parameters(), strict=True):
                kept.sub_(0.0001 * (kept - parameter))
        return seen

    return step
