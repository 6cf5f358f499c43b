"""Draws the evaluation's images by per-caption seeds and reads their features in the same pass, resumable by chunk.

In: prompts, a pipeline, a protocol, extractors. Out: OUT/chunk-*.safetensors, one per compute batch: rows of features
by name, and the images that a contact sheet shows. Chunks are fixed by caption number, so ranks and restarts agree.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from webdataset import TarWriter

from randcond.eval.images.extractor import Extractor, Rows
from randcond.eval.images.prompts import Prompts
from randcond.eval.images.protocol_images import scored_images
from randcond.launch.config.protocols import Protocol
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import atomic_write, read_json, write_json
from randcond.launch.runtime.locks import claim_each
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import device, rank, world_size
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents, to_bytes

Draw = Callable[["Task", Path, str], dict[str, Any]]  # (task, folder, what) -> everything its images depend on


@dataclass(frozen=True)
class Task:
    """Everything that decides the images of an evaluation and what is read from them."""

    prompts: Prompts
    protocol: Protocol
    ev: Eval
    extractors: dict[str, Extractor]

    @property
    def shown(self) -> set[int]:
        """The captions whose images are kept."""
        return {number for ids in self.prompts.shown(self.ev.shown).values() for number in ids}


def chunk_paths(out: Path, count: int, batch: int) -> list[Path]:
    """One file per compute batch, in order."""
    return [out / f"chunk-{number:05d}.safetensors" for number in range(-(-count // batch))]


def generate(
    task: Task,
    pipe: DiffusionPipeline,
    out: Path,
    made_of: dict[str, Any],
    what: str,
    beat: Callable[[], object] = lambda: None,
) -> None:
    """Draws the missing chunks this rank can claim; returns when all ranks' chunks are in place.

    `beat` is called after each of them. Raises UserError when `out` holds images made otherwise.
    """
    batch, count = task.ev.batch, len(task.prompts.captions)
    chunks = chunk_paths(out, count, batch)
    done = sum(map(Path.is_file, chunks))
    _hold_to_plan(out, made_of, task.ev.save, whole=done == len(chunks))
    mine = 0
    silent = rank() != 0 or done == len(chunks)
    bar = Progress(total=len(chunks), initial=done, desc=what, unit="batch", disable=silent)
    reader = _Reader()
    # What was claimed is let go of after the reader is done with it, also where drawing fails.
    with closing(claim_each(chunks, reader.landed, behind=1)) as claimed, reader:
        for number in claimed:
            ids = list(range(number * batch, min((number + 1) * batch, count)))
            drawn = _draw(task, pipe, ids)
            reader.put(_read_and_write, task, drawn, ids, out, number, chunks[number])
            mine += 1
            beat()
            bar.update(sum(map(Path.is_file, chunks)) - bar.n)  # every rank's chunks count
    bar.update(len(chunks) - bar.n)
    bar.close()
    if mine and world_size() > 1:
        log.info(f"{what}: rank {rank()} drew {mine} of {len(chunks)} batches")


class _Reader:
    """Reads one compute batch in a thread while the next is drawn: JPEGs are made on the CPU, which waits meanwhile."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.last: Future[None] | None = None
        self.stream = torch.cuda.Stream() if device().type == "cuda" else None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *raised: object) -> None:
        self.pool.shutdown()

    def put(self, work: Callable[..., None], *inputs: Any) -> None:
        """Begins the next piece of work when the last is done; raises what that one raised."""
        if self.last:
            self.last.result()
        self.last = self.pool.submit(self._beside, work, *inputs)

    def _beside(self, work: Callable[..., None], *inputs: Any) -> None:
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            work(*inputs)

    def landed(self, path: Path) -> bool:
        """Whether a file is there; raises what the last piece of work raised."""
        if self.last and self.last.done():
            self.last.result()
        return path.is_file()


def _hold_to_plan(out: Path, made_of: dict[str, Any], save: str, whole: bool) -> None:
    """Writes the plan, or raises UserError when what is there was made otherwise, or without what is wanted now.

    Where nothing is missing any more (`whole`), less may be wanted than was read and kept; what is still to be drawn
    would lack that.
    """
    path, remedy = out / "plan.json", "Remove it and evaluate again, or give another folder."
    if not path.is_file():
        write_json(path, {**made_of, "saved": save})
        return
    found, what = read_json(path), f"the evaluation at {out}"
    rest = {key: value for key, value in made_of.items() if key != "extractors"}
    check_matches(found, rest, what, remedy)
    check_matches(
        found["extractors"], made_of["extractors"], f"{what} (eval.metrics)", remedy
    )  # more may have been read
    if save not in ("none", found["saved"]):
        raise UserError(f"eval.save: {what} kept its images as {found['saved']!r}, wanted {save!r}. {remedy}")
    if whole:
        return
    begun = f"{what} was begun with"
    if left := sorted(found["extractors"].keys() - made_of["extractors"].keys()):
        raise UserError(f"eval.metrics: {begun} metrics that need {', '.join(left)}, too: end it with them. {remedy}")
    if save != found["saved"]:
        raise UserError(f"eval.save: {begun} {found['saved']!r}: end it so, wanted is {save!r}. {remedy}")


def _draw(task: Task, pipe: DiffusionPipeline, ids: list[int]) -> Tensor:
    """One compute batch -> images uint8 [n, 3, H, W], on the CPU."""
    ev, protocol = task.ev, task.protocol
    captions = [task.prompts.captions[each] for each in ids]
    seeds = [caption_seed(ev.seed, each) for each in ids]
    latents = draw_latents(pipe, captions, seeds, protocol.steps, protocol.guidance, ev.batch, ev.resolution)
    decoded = decode(pipe, latents)
    sound = decoded.isfinite().flatten(1).all(dim=1)
    if not sound.all():  # rounded to bytes they would be black, and scored
        numbers = [each for each, fine in zip(ids, sound.tolist(), strict=True) if not fine]
        raise UserError(
            f"images of captions {', '.join(map(str, numbers))} are not finite: the network diverged, or its "
            f"autoencoder overflows in {pipe.vae.dtype}"
        )
    return to_bytes(decoded).cpu()


def _read_and_write(task: Task, drawn: Tensor, ids: list[int], out: Path, number: int, chunk: Path) -> None:
    """One compute batch put through the protocol, read by every extractor, written."""
    ev, protocol = task.ev, task.protocol
    captions = [task.prompts.captions[each] for each in ids]
    images, files = scored_images(drawn, protocol)
    rows: Rows = {}
    for extractor in task.extractors.values():
        rows |= extractor.read(images, captions)
    shown = [place for place, each in enumerate(ids) if each in task.shown]
    if shown:
        rows["shown"] = images[shown]  # [k, 3, h, w]
        rows["shown_ids"] = torch.tensor([ids[place] for place in shown])
    if ev.save != "none":
        _save(ev, protocol, out, number, ids, captions, files)
    with atomic_write(chunk) as aside:
        save_file({name: values.contiguous() for name, values in rows.items()}, aside)


def _save(
    ev: Eval, protocol: Protocol, out: Path, number: int, ids: list[int], captions: list[str], files: list[bytes]
) -> None:
    """The scored files of one chunk: a WebDataset tar, or a file each."""
    kind = "jpg" if protocol.jpeg else "png"
    if ev.save == "files":  # an image and its caption, as `cache.images` and other tools read them
        (out / "images").mkdir(parents=True, exist_ok=True)
        for each, caption, data in zip(ids, captions, files, strict=True):
            path = out / "images" / f"{each:06d}"
            path.with_suffix(".txt").write_text(caption + "\n")
            path.with_suffix(".part").write_bytes(data)
            path.with_suffix(".part").rename(path.with_suffix(f".{kind}"))
        return
    with (
        atomic_write(out / "images" / f"images-{number:05d}.tar") as aside,
        TarWriter(str(aside), mtime=0, user="randcond", group="randcond") as tar,
    ):
        for each, caption, data in zip(ids, captions, files, strict=True):
            tar.write({"__key__": f"{each:09d}", kind: data, "txt": caption})


def load_rows(out: Path, count: int, batch: int, name: str) -> Tensor:
    """One row of features of all captions [n, ...], in their order."""
    return torch.cat([_read(chunk, name) for chunk in chunk_paths(out, count, batch)])


def load_shown(out: Path, count: int, batch: int) -> dict[int, Tensor]:
    """The kept images, uint8 [3, h, w], by caption number; what was not drawn is not there."""
    found: dict[int, Tensor] = {}
    for chunk in filter(Path.is_file, chunk_paths(out, count, batch)):
        with _opened(chunk) as file:
            if "shown" in file.keys():  # noqa: SIM118 (not a dict)
                ids = file.get_tensor("shown_ids").tolist()
                found.update(zip(ids, file.get_tensor("shown"), strict=True))
    return found


def _read(chunk: Path, name: str) -> Tensor:
    with _opened(chunk) as file:
        return file.get_tensor(name)


@contextmanager
def _opened(chunk: Path) -> Iterator[Any]:
    try:
        with safe_open(chunk, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{chunk}: damaged ({error}); remove it, and evaluate again: it alone is drawn anew") from None
