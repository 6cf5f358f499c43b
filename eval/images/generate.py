"""Draws the images of an evaluation and reads their features in the same pass; resumes chunk by chunk.

In: captions, a pipeline, a protocol, extractors. Out: OUT/chunk-*.safetensors, one file per compute batch. A chunk
holds the features by name and the images for the contact sheet. Caption numbers decide which captions a chunk holds,
so the chunks are the same for any number of ranks and after a restart. Each image has its own seed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from webdataset import TarWriter

from randcond.eval.images.extractor import Extractor, Features
from randcond.eval.images.identity import ABSENT
from randcond.eval.images.prompts import Prompts
from randcond.eval.images.protocol_images import scored_images
from randcond.launch.config.protocols import Protocol
from randcond.launch.config.sections import Eval
from randcond.launch.device.out_of_memory import naming_memory, smaller_batch
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import atomic_write, naming_full_disk, read_record, write_json
from randcond.launch.runtime.locks import claim_each
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import device, rank, world_size
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents, to_bytes

Draw = Callable[["Task", Path, str], dict[str, Any]]  # (task, folder, label) -> identity of the images


@dataclass(frozen=True)
class Task:
    """The captions to draw, how to draw them, and what to read from the images."""

    prompts: Prompts
    protocol: Protocol
    ev: Eval
    extractors: dict[str, Extractor]
    text_facts: dict[str, Any] = field(default_factory=dict)  # as Teacher.text_facts in launch/config/sections.py
    during_training: bool = False  # leaves out scores that take minutes

    @property
    def batch(self) -> int:
        """Compute batch. The stage has replaced null by the batch that fits."""
        assert self.ev.batch is not None, "eval.batch is null: use with_eval_batch()"
        return self.ev.batch

    @property
    def shown(self) -> set[int]:
        """Numbers of the captions whose images are kept for the contact sheet."""
        return {number for ids in self.prompts.shown(self.ev.shown).values() for number in ids}


def chunk_paths(out: Path, count: int, batch: int) -> list[Path]:
    """Returns the chunk files of `count` captions in order, one per compute batch of `batch` captions."""
    return [out / f"chunk-{number:05d}.safetensors" for number in range(-(-count // batch))]


def generate(
    task: Task,
    pipe: DiffusionPipeline,
    out: Path,
    identity: dict[str, Any],
    label: str,
    beat: Callable[[], object] = lambda: None,
) -> None:
    """Draws the missing chunks together with the other ranks; returns when all chunks exist.

    `identity`: the settings that the images depend on. `label`: text of the progress bar. `beat` is called after each
    chunk that this rank draws. Raises UserError if `out` holds images with other settings.
    """
    batch, count = task.batch, len(task.prompts.captions)
    chunks = chunk_paths(out, count, batch)
    done = sum(map(Path.is_file, chunks))
    _check_plan(out, identity, task.ev.save, complete=done == len(chunks))
    own_chunks = 0
    silent = rank() != 0 or done == len(chunks)
    bar = Progress(total=len(chunks), initial=done, desc=label, unit="batch", disable=silent)
    reader = _Reader()
    begun = f" and remove {out}, which was begun in batches of {batch}"
    fitting = naming_memory(smaller_batch("eval.batch", batch, further=begun))
    # The order of this `with` matters: a claimed chunk is released after the reader has finished, also on errors.
    with fitting, closing(claim_each(chunks, reader.is_written, unfinished=1)) as claimed, reader:
        for number in claimed:
            ids = list(range(number * batch, min((number + 1) * batch, count)))
            drawn = _draw(task, pipe, ids)
            reader.submit(_read_and_write, task, drawn, ids, out, number, chunks[number])
            own_chunks += 1
            beat()
            bar.update(sum(map(Path.is_file, chunks)) - bar.n)  # counts the chunks of all ranks
    bar.update(len(chunks) - bar.n)
    bar.close()
    if own_chunks and world_size() > 1:
        log.info(f"{label}: rank {rank()} drew {own_chunks} of {len(chunks)} batches")


class _Reader:
    """A thread that reads features from one compute batch while the next one is drawn.

    It encodes JPEGs on the CPU, which would otherwise be idle while the device draws.
    """

    def __init__(self) -> None:
        on_gpu = (own := device()).type == "cuda"
        # A new thread begins on the first GPU. Without this, every rank would take memory there.
        self.pool = ThreadPoolExecutor(1, "reader", *((torch.cuda.set_device, (own,)) if on_gpu else ()))
        self.last: Future[None] | None = None
        self.stream = torch.cuda.Stream() if on_gpu else None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *raised: object) -> None:
        self.pool.shutdown()

    def submit(self, work: Callable[..., None], *inputs: Any) -> None:
        """Waits for the previous work and starts the next; raises the error of the previous work, if it failed."""
        if self.last:
            self.last.result()
        self.last = self.pool.submit(self._run_on_stream, work, *inputs)

    def _run_on_stream(self, work: Callable[..., None], *inputs: Any) -> None:
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            work(*inputs)

    def is_written(self, path: Path) -> bool:
        """Returns True if the file exists; raises the error of the last work, if it failed."""
        if self.last and self.last.done():
            self.last.result()
        return path.is_file()


def _check_plan(out: Path, identity: dict[str, Any], save: str, complete: bool) -> None:
    """Writes OUT/plan.json, or raises UserError if an existing plan does not allow this evaluation.

    A complete evaluation may have more extractors and more saved images than needed now. An incomplete one must have
    exactly the same, because its missing chunks would lack them.
    """
    path, remedy = out / "plan.json", "Restore these settings, or give another folder."
    if not path.is_file():
        write_json(path, {**identity, "saved": save})
        return
    plan, what = read_record(path, "extractors", "saved"), f"the evaluation at {out}"
    rest = {key: value for key, value in identity.items() if key != "extractors"}
    check_matches(plan, rest, what, remedy, ABSENT)
    if added := sorted(identity["extractors"].keys() - plan["extractors"].keys()):
        raise UserError(
            f"eval.metrics: {what} was made without {', '.join(added)}: to add a metric that needs it, move that "
            f"folder aside and evaluate again, which draws the images anew"
        )
    check_matches(plan["extractors"], identity["extractors"], f"{what} (eval.metrics)", remedy)
    if save not in ("none", plan["saved"]):
        raise UserError(f"eval.save: {what} was run with {plan['saved']!r}, expected {save!r}. {remedy}")
    if complete:
        return
    if extra := sorted(plan["extractors"].keys() - identity["extractors"].keys()):
        raise UserError(
            f"eval.metrics: {what} is incomplete and was started with metrics that also need {', '.join(extra)}: "
            f"finish it with the same metrics. {remedy}"
        )
    if save != plan["saved"]:
        raise UserError(
            f"eval.save: {what} is incomplete and was started with {plan['saved']!r}, got {save!r}: finish it with "
            f"eval.save={plan['saved']}. {remedy}"
        )


def _draw(task: Task, pipe: DiffusionPipeline, ids: list[int]) -> Tensor:
    """Draws one compute batch of captions; returns images uint8 [n, 3, H, W], on the CPU."""
    ev, protocol = task.ev, task.protocol
    captions = [task.prompts.captions[number] for number in ids]
    seeds = [caption_seed(ev.seed, number) for number in ids]
    settings = protocol.steps, protocol.guidance, task.batch, ev.resolution, task.text_facts.get("text_tokens")
    latents = draw_latents(pipe, captions, seeds, *settings)
    decoded = decode(pipe, latents)
    finite = decoded.isfinite().flatten(1).all(dim=1)
    if not finite.all():  # rounded to bytes, such images would be black and would be scored
        failed = [number for number, is_finite in zip(ids, finite.tolist(), strict=True) if not is_finite]
        raise UserError(
            f"images of captions {', '.join(map(str, failed))} are NaN or infinite: the network diverged, or its "
            f"autoencoder overflows in {pipe.vae.dtype}"
        )
    return to_bytes(decoded).cpu()


def _read_and_write(task: Task, drawn: Tensor, ids: list[int], out: Path, number: int, chunk: Path) -> None:
    """Processes one compute batch uint8 [n, 3, H, W], reads its features with every extractor, writes the chunk."""
    ev, protocol = task.ev, task.protocol
    captions = [task.prompts.captions[i] for i in ids]
    images, files = scored_images(drawn, protocol)
    features: Features = {}
    for extractor in task.extractors.values():
        features |= extractor.read(images, captions)
    shown = [index for index, i in enumerate(ids) if i in task.shown]
    if shown:
        features["shown"] = images[shown]  # [k, 3, h, w]
        features["shown_ids"] = torch.tensor([ids[index] for index in shown])
    if ev.save != "none":
        _save_images(ev, protocol, out, number, ids, captions, files)
    with atomic_write(chunk) as temporary:
        save_file({name: values.contiguous() for name, values in features.items()}, temporary)


def _save_images(
    ev: Eval, protocol: Protocol, out: Path, number: int, ids: list[int], captions: list[str], files: list[bytes]
) -> None:
    """Saves the scored images of one chunk: as a WebDataset tar, or as separate files (`eval.save`)."""
    kind = "jpg" if protocol.jpeg else "png"
    if ev.save == "files":  # image and caption under one name, as `cache.images` and other tools read them
        (out / "images").mkdir(parents=True, exist_ok=True)
        for i, caption, data in zip(ids, captions, files, strict=True):
            path = out / "images" / f"{i:06d}"
            with naming_full_disk(path.with_suffix(f".{kind}")):
                path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
                try:
                    path.with_suffix(".part").write_bytes(data)
                    path.with_suffix(".part").rename(path.with_suffix(f".{kind}"))
                finally:
                    path.with_suffix(".part").unlink(missing_ok=True)
        return
    with (
        atomic_write(out / "images" / f"images-{number:05d}.tar") as temporary,
        TarWriter(str(temporary), mtime=0, user="randcond", group="randcond") as tar,
    ):
        for i, caption, data in zip(ids, captions, files, strict=True):
            tar.write({"__key__": f"{i:09d}", kind: data, "txt": caption})


def load_features(out: Path, count: int, batch: int, name: str) -> Tensor:
    """Loads one feature of all `count` captions [count, ...], in the order of the captions."""
    return torch.cat([_read_feature(chunk, name) for chunk in chunk_paths(out, count, batch)])


def load_shown(out: Path, count: int, batch: int) -> dict[int, Tensor]:
    """Loads the images kept for the contact sheet: caption number -> uint8 [3, h, w], values 0 to 255.

    Images of missing chunks are left out.
    """
    images: dict[int, Tensor] = {}
    for chunk in filter(Path.is_file, chunk_paths(out, count, batch)):
        with _open_chunk(chunk) as file:
            if "shown" in file.keys():  # noqa: SIM118 (not a dict)
                ids = file.get_tensor("shown_ids").tolist()
                images.update(zip(ids, file.get_tensor("shown"), strict=True))
    return images


def _read_feature(chunk: Path, name: str) -> Tensor:
    with _open_chunk(chunk) as file:
        return file.get_tensor(name)


@contextmanager
def _open_chunk(chunk: Path) -> Iterator[Any]:
    try:
        with safe_open(chunk, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"{chunk}: is damaged ({error}); remove it and evaluate again: only this file is drawn again"
        ) from None
