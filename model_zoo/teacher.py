"""The frozen teacher: an ordinary diffusers folder of a known family, behind one small interface.

In: a local folder or hub id. Out: token ids, conditions, noised latents, prediction targets, sampling pipelines.
Text encoders, tokenizers, noise schedule, prediction type and latent scaling come from the folder's own files.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from randcond.model_zoo.checkpoints.diffusers_folder import compute_dtype, freeze, loading, part_dtypes
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.checkpoints.hub import local_folder
from randcond.model_zoo.checkpoints.schedule import process_of
from randcond.model_zoo.checkpoints.stored_tensors import StoredTensors
from randcond.model_zoo.checkpoints.tokenizers import Tokenizers
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.families.base.family import Condition, Family, TextPart, default_length
from randcond.model_zoo.families.faults.look import check_configurations
from randcond.model_zoo.families.registry import load_options, pipeline_of, pixels_per_latent, with_parts
from randcond.model_zoo.int8_products import Int8Product
from randcond.model_zoo.int8_weights import int8_kind, store_in_int8
from randcond.model_zoo.process.process import Process
from randcond.model_zoo.sampler import build_sampler
from randcond.model_zoo.text_encoding.buckets import in_buckets
from randcond.model_zoo.text_encoding.condition_cache import ConditionCache, in_chunks
from randcond.model_zoo.text_encoding.duplicates import once_each
from randcond.model_zoo.text_encoding.options import TextOptions, check_buckets
from randcond.model_zoo.text_encoding.transfer import keep_on_host, to_device


@dataclass
class Teacher:
    """Frozen teacher networks in eval mode, with their own process and tokenizers."""

    pipe: Any  # a pipeline of the family
    folder: Path
    dtype: torch.dtype  # that it computes in
    family: Family
    process: Process
    text: TextOptions = field(default_factory=TextOptions)
    remark: str = ""  # a line for the log
    text_is_compiled: bool = False  # for one number of captions
    latent_side: int | None = None  # set if the training latents differ in size from those of the denoiser

    @classmethod
    def load(
        cls,
        path: Path,
        dtype: str = "bf16",
        device: str | torch.device = "cpu",
        text: TextOptions | None = None,
    ) -> "Teacher":
        """Loads a diffusers folder or hub id, safetensors only.

        With the dtypes int8 and int8_dynamic, the denoiser and the text encoders store their weights in 8 bits; what
        they don't multiply in 8 bits they compute in bf16.
        Raises UserError naming the folder if it is missing, or file and key if it does not suit a teacher.
        """
        folder = local_folder(path)
        check_configurations(folder)
        pipeline, family = pipeline_of(folder)
        text = text or TextOptions()
        check_buckets(text.buckets, family, path)
        with loading(folder):
            pipe = pipeline.from_pretrained(
                folder, dtype=part_dtypes(folder, dtype), use_safetensors=True, **load_options(folder)
            )
        family.loaded(pipe)
        process = process_of(pipe.scheduler, folder, family.flow)
        freeze(pipe, device)
        teacher = cls(pipe, folder, compute_dtype(dtype), family, process, text)
        own, for_text = int8_kind(dtype), text.dtype or int8_kind(dtype)
        if own and own == for_text:
            teacher.remark = teacher._store_in_int8("teacher", [teacher.denoiser, *teacher.text_encoders], own)
        else:
            parts = [("text encoders", teacher.text_encoders, for_text), ("teacher", [teacher.denoiser], own)]
            said = [teacher._store_in_int8(what, networks, kind) for what, networks, kind in parts if kind]
            teacher.remark = "; ".join(said)
        if text.offload:
            keep_on_host(teacher.text_encoders, device)
        return teacher

    def _store_in_int8(self, what: str, networks: list[nn.Module], kind: str) -> str:
        """Stores the weights in 8 bits. Returns a line for the log with the error of the predictions."""
        before = self.probe()
        counts = [store_in_int8(network, kind) for network in networks]
        taken, layers = (sum(each) for each in zip(*counts, strict=True))
        products = sum(isinstance(module, Int8Product) for network in networks for module in network.modules())
        multiply = f" ({products} multiply in it)" if products else ""
        return (
            f"{what} in int8: {taken} of {layers} linear layers and convolutions{multiply}, which changes the "
            f"teacher's predictions by {(self.probe() - before).norm() / before.norm():.2%}"
        )

    @property
    def denoiser(self) -> Any:
        """The teacher's denoiser."""
        return getattr(self.pipe, self.family.part)

    @cached_property  # every step's encode() needs it
    def architecture(self) -> Architecture:
        """The class and configuration of the denoiser, as it was made, and the length of its text."""
        length = self.text.tokens or default_length(type(self.pipe)) or 0
        lengths = [length if part.is_open else self._own_length(part) for part in self.family.text]
        return Architecture.of(self.denoiser).reading(self.family.text_length(lengths))

    def _own_length(self, part: TextPart) -> int:
        tokenizer = getattr(self.pipe, part.tokenizer, None)  # SDXL has one more than SD
        return tokenizer.model_max_length if tokenizer else 0

    @property
    def device(self) -> torch.device:
        """The device of the teacher's weights."""
        # diffusers' own property looks at every module for hooks of offloading. That takes 1 ms or more, at every call.
        return next(chain(self.denoiser.parameters(), self.denoiser.buffers())).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one latent."""
        channels, *sides = self.architecture.latent_shape
        height, width = [self.latent_side] * 2 if self.latent_side else sides
        return channels, height, width

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along a side of an image per position of a latent."""
        return pixels_per_latent(self.pipe)

    @property
    def resolution(self) -> int:
        """Side length of an image in pixels."""
        return self.latent_shape[1] * self.pixels_per_latent

    @property
    def timesteps(self) -> int:
        """T, the length of the schedule."""
        return self.process.timesteps

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the configuration and weight files that determine the teacher's images."""
        return folder_fingerprint(self.folder)

    @property
    def text_encoders(self) -> list[nn.Module]:
        """The text encoders, one or several."""
        return [getattr(self.pipe, part.encoder) for part in self.family.text_parts(self.pipe)]

    @cached_property
    def tokenizers(self) -> Tokenizers:
        """The tokenizers, in the order of the text encoders."""
        parts = self.family.text_parts(self.pipe)
        found = [getattr(self.pipe, part.tokenizer) for part in parts]
        lengths = self.family.lengths(self.pipe, self.text.tokens)
        return Tokenizers(found, str(self.folder), lengths, [part.prepare for part in parts])

    @torch.no_grad()
    def encode(self, token_ids: dict[str, Tensor], null: Tensor | None = None, zeros: bool = True) -> Condition:
        """Encodes token ids to the denoiser's condition, in the teacher's dtype.

        token_ids: the output of `tokenizers`, [B, L] per text encoder, on the CPU. Other keys are ignored.
        null: bool [B], True for null captions. If the teacher's own pipeline uses another input than the encoding of
            "" for them (SDXL: zeros) and `zeros` is True, they get that.
        """
        ids = [token_ids[part.ids] for part in self.family.text_parts(self.pipe)]
        own_null = null if zeros else None
        if self._conditions is not None:
            return self._conditions(self._encode, ids, own_null, self.device)
        return self._encode(ids, own_null)

    def _encode(self, ids: list[Tensor], null: Tensor | None) -> Condition:
        """Encodes token ids [B, L] per text encoder, on the CPU, in length buckets if the text has those."""
        if self.has_language_model and not self.has_buckets and not self.text_is_compiled:
            return once_each(self._encode_at_once, ids, null, self.device)
        if not self.has_buckets:
            return self._encode_at_once(ids, null)

        def encode(ids: Tensor, null: Tensor | None) -> Condition:
            return self._encode_at_once([ids], null)

        padding = self.pipe.tokenizer.pad_token_id
        return in_buckets(encode, ids[0], null, padding, self.family.masked, self.device)

    def _encode_at_once(self, ids: list[Tensor], null: Tensor | None) -> Condition:
        return in_chunks(self._run, ids, null) if self._conditions is not None else self._run(ids, null)

    def _run(self, ids: list[Tensor], null: Tensor | None) -> Condition:
        there = [to_device(each, self.device) for each in ids]
        own_null = null if null is None else to_device(null, self.device)
        height, width = (side * self.pixels_per_latent for side in self.latent_shape[1:])
        return self.family.encode(self.pipe, there, own_null, (height, width), self.text.tokens)

    @property
    def has_buckets(self) -> bool:
        """True if captions are encoded in length buckets."""
        return bool(self.family.masked) and self.text.buckets is not False

    @property
    def has_language_model(self) -> bool:
        """True if a language model encodes the text. CLIPs take about 1 % of a step."""
        return any(not isinstance(each, CLIPTextModel | CLIPTextModelWithProjection) for each in self.text_encoders)

    @cached_property
    def _conditions(self) -> ConditionCache | None:
        return ConditionCache(1e9 * self.text.cache_gb) if self.text.cache_gb else None

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Returns predictions on noise with the null caption at three timesteps [3, C, h, w], fp32.

        They are compared before and after a change of the networks.
        """
        steps = torch.tensor([self.timesteps * tenth // 10 for tenth in (1, 5, 9)], device=self.device)
        noised = torch.randn(len(steps), *self.latent_shape, generator=torch.Generator().manual_seed(0))
        ids = self.tokenizers([""] * len(steps))
        condition = self._encode([ids[part.ids] for part in self.family.text_parts(self.pipe)], None)  # not the cache's
        return denoise(self.denoiser, noised.to(self.device, self.dtype), steps, condition).float()

    def stored_denoiser(self) -> StoredTensors:
        """Returns the denoiser's weights as stored in the folder, not rounded to the teacher's compute dtype."""
        return StoredTensors(self.folder / self.family.part)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns x_t [B, C, h, w] by the teacher's process.

        latents (x_0) and noise (eps): [B, C, h, w]. timesteps: t [B].
        """
        return self.process.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns what the teacher predicts [B, C, h, w], by its process. The arguments are those of add_noise()."""
        return self.process.target(latents, noise, timesteps)

    def pipeline(self, sampler: str, denoiser: nn.Module | None = None) -> Any:
        """Returns a pipeline with the named sampler, on the teacher's denoiser or on `denoiser`.

        Samplers such as "ddim" use the teacher's own scheduler config (paper, supplement K). The sampler "teacher" is
        the one that the teacher ships with.
        """
        network = self.denoiser if denoiser is None else denoiser
        parts = {"scheduler": build_sampler(sampler, self.pipe.scheduler), self.family.part: network}
        pipe = with_parts(self.pipe, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe
