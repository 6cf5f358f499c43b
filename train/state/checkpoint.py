"""Checkpoints: every rank writes its pieces of the fp32 state in the background.

A checkpoint is a folder step-NNNNNNNN. It holds one rank-NNNN.safetensors per rank, with flat ranges of fp32 values
under keys "kind/parameter@start", and a manifest with shapes and checksums. Rank 0 writes the manifest last and then
renames the folder to its final name, so that a folder with this name is complete. Any engine at any world size can
load a checkpoint, because it reads only the ranges it needs. A run resumes from the newest checkpoint whose checksums
are correct.
"""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import (
    naming_full_disk,
    read_json,
    read_record,
    remove,
    sha256,
    sync,
    write_json,
    write_text,
)
from randcond.launch.runtime.logs import log
from randcond.train.engine.base import STATE_KINDS, State

Shapes = dict[str, tuple[int, ...]]
_REMEDY = "rename this checkpoint's folder to resume from the previous one"
FINAL_WRITE_TIMEOUT = 30.0  # seconds to wait for an unfinished checkpoint after an error


class Writer:
    """Writes checkpoints in a thread, one at a time. A context: on exit it waits for the last one."""

    def __init__(self, folder: Path, rank: int, ranks: int, keep: int, keep_every: int = 0) -> None:
        """`keep`: the number of newest checkpoints to keep; `keep_every`: multiples of this step are always kept."""
        self.folder, self.rank, self.ranks = folder, rank, ranks
        self.keep, self.keep_every = keep, keep_every
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._abandoned = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits until the last checkpoint is written.

        After an error the other ranks may be gone. The wait is then limited, and an incomplete checkpoint is abandoned.
        """
        if kind is None:
            self.wait()
        elif self._pending is not None:
            wait([self._pending], timeout=FINAL_WRITE_TIMEOUT)
            self._abandoned.set()

    def save(self, step: int, state: State, shapes: Shapes, facts: dict[str, Any]) -> None:
        """Starts to write this rank's state after `step`. Waits for the previous write first, and raises its error.

        `state` must be a copy. `facts` are added to the manifest.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, step, state, shapes, facts)

    def check(self) -> None:
        """Raises the error of the last write, if it failed. Does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last write is finished. Raises its error, if it failed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, step: int, state: State, shapes: Shapes, facts: dict[str, Any]) -> None:
        path = step_folder(self.folder, step)
        unfinished = _unfinished(path)
        with naming_full_disk(path):
            self._write_pieces(unfinished, state)
            if self.rank == 0:
                self._commit(path, unfinished, {"step": step, **facts, "shapes": shapes})

    def _write_pieces(self, unfinished: Path, state: State) -> None:
        """Writes this rank's file and its record into an unfinished checkpoint. Removes a file that is incomplete."""
        unfinished.mkdir(parents=True, exist_ok=True)
        file = unfinished / f"rank-{self.rank:04d}.safetensors"
        record = file.with_suffix(".json")
        temporary = record.with_suffix(".part")
        try:
            save_file({f"{kind}/{key}": run for kind, runs in state.items() for key, run in runs.items()}, file)
            sync(file)
            runs = {kind: {key: run.numel() for key, run in pieces.items()} for kind, pieces in state.items()}
            temporary.write_text(json.dumps({"sha256": sha256(file), "runs": runs}))
        except BaseException:
            remove(file)  # so that the logs of a full disk have room
            remove(temporary)
            raise
        temporary.rename(record)  # must be the last access of this rank, because rank 0 may now rename the folder

    def _commit(self, path: Path, unfinished: Path, manifest: dict[str, Any]) -> None:
        """Waits for the files of the other ranks, writes the manifest, renames the folder, and removes old checkpoints.

        The wait has no timeout. If a rank dies, the heartbeat ends the job.
        """
        records = [unfinished / f"rank-{rank:04d}.json" for rank in range(self.ranks)]
        # Lists the folder, because NFS caches for up to a minute that a file is missing.
        while not {record.name for record in records} <= set(os.listdir(unfinished)):
            if self._abandoned.is_set():
                raise RuntimeError(f"{path}: abandoned, because not every rank has written its file")
            time.sleep(0.05)
        files = {record.with_suffix(".safetensors").name: read_json(record) for record in records}
        for record in records:
            record.unlink()
        write_json(unfinished / "manifest.json", {**manifest, "files": files})
        write_text(unfinished / "manifest.sha256", sha256(unfinished / "manifest.json"))
        sync(unfinished, deep=False)
        unfinished.rename(path)
        sync(self.folder, deep=False)
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            if not self.keep_every or int(old.name.removeprefix("step-")) % self.keep_every:
                _remove_old(old)


class StoredCheckpoint:
    """A complete checkpoint on disk. Reads any range of any tensor."""

    def __init__(self, path: Path) -> None:
        """Reads the manifest. Opens the files of the ranks when they are needed."""
        self.path = path
        self.manifest = read_record(path / "manifest.json", "step", "shapes", "files", remedy=_REMEDY)
        self.shapes: Shapes = {name: tuple(shape) for name, shape in self.manifest["shapes"].items()}
        self._runs: dict[tuple[str, str], list[tuple[int, int, str]]] = {}  # (kind, name) -> (start, stop, file)
        for file, entry in self.manifest["files"].items():
            for kind, runs in entry["runs"].items():
                for key, length in runs.items():
                    name, start = key.rsplit("@", 1)
                    self._runs.setdefault((kind, name), []).append((int(start), int(start) + length, file))
        self._open: dict[str, Any] = {}

    @property
    def kinds(self) -> set[str]:
        """The kinds of state that it holds: STATE_KINDS, without the EMA of a run with `engine.ema` off."""
        return {kind for kind, _ in self._runs}

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Returns the values `start` to `stop` [stop - start] of a flattened tensor, fp32, on the CPU.

        `kind`: one of STATE_KINDS; `name`: of the parameter. Raises UserError if the checkpoint does not hold them.
        """
        found = []
        position = start
        for first, last, file in sorted(self._runs.get((kind, name), [])):
            if first <= position < min(last, stop):
                end = min(last, stop)
                found.append(self._file(file).get_slice(f"{kind}/{name}@{first}")[position - first : end - first])
                position = end
        if position < stop:
            raise UserError(f"{self.path}: has no {kind} values {position} to {stop} of {name}; {_REMEDY}")
        return torch.cat(found) if found else torch.empty(0)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.path / name, framework="pt")
            except SafetensorError as error:
                raise UserError(f"{self.path / name}: damaged ({error}); {_REMEDY}") from None
        return self._open[name]

    def full(self, kind: str) -> dict[str, Tensor]:
        """Returns all tensors of a kind by parameter name, fp32, on the CPU, in the shapes of `self.shapes`."""
        assert kind in STATE_KINDS, kind
        sizes = {name: torch.Size(shape) for name, shape in self.shapes.items()}
        return {name: self.read(kind, name, 0, size.numel()).reshape(size) for name, size in sizes.items()}


def step_folder(folder: Path, step: int) -> Path:
    """Returns the path of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def _unfinished(path: Path) -> Path:
    """Returns the name of a checkpoint folder while it is written or removed."""
    return path.with_name(f".{path.name}.part")


def _remove_old(path: Path) -> None:
    """Removes an old checkpoint. Logs errors, so that a user who reads or removes the folder does not end the run."""
    try:
        path.rename(_unfinished(path))
        remove(_unfinished(path))
    except OSError as error:
        log.info(f"checkpoint {path}: could not be removed completely ({error}); the next start tries again")


def clear_unfinished(folder: Path) -> None:
    """Removes unfinished checkpoints of a killed run, and old ones that could not be removed completely.

    Rank 0 calls it before any rank writes a checkpoint.
    """
    for part in folder.glob(".step-*.part"):
        try:
            remove(part)
        except OSError as error:
            log.info(f"checkpoint {part}: could not be removed ({error})")


def rename_damaged_after(folder: Path, step: int) -> None:
    """Renames the checkpoints after `step`, which are damaged, because the run will write those steps again."""
    for path in sorted(folder.glob("step-*")):
        if path > step_folder(folder, step):
            damaged = path.with_name(f"damaged-{path.name}")
            remove(damaged)
            path.rename(damaged)


def newest_valid(
    folder: Path,
    rank: int = 0,
    ranks: int = 1,
    broadcast: Callable[[Any], Any] = lambda value: value,
    collect: Callable[[Any], list[Any]] = lambda value: [value],
) -> StoredCheckpoint | None:
    """Returns the newest checkpoint that is not damaged, or None. Logs the damaged ones that it skips.

    Every rank must call it and checks a share of the files. Rank 0 lists the folder for all ranks, because another host
    may see an old state of a shared folder. `broadcast`, `collect`: the methods of the engine.
    """
    for name in broadcast([path.name for path in sorted(folder.glob("step-*"), reverse=True)]):
        damages = [damage for damage in collect(_find_damage(folder / name, rank, ranks)) if damage]
        if not damages:
            return StoredCheckpoint(folder / name)
        if rank == 0:
            log.info(f"checkpoint {folder / name} is damaged ({damages[0]}); falling back to the previous one")
    return None


def _find_damage(path: Path, rank: int, ranks: int) -> str | None:
    """Returns a description of the damage in this rank's share of a checkpoint, or None.

    Raises OSError if a file exists but can't be read at the moment. Such a checkpoint may be intact, and must not be
    skipped.
    """
    try:
        if (path / "manifest.sha256").read_text() != sha256(path / "manifest.json"):
            return "manifest.json does not match its checksum"
        files = read_record(path / "manifest.json", "files")["files"]
        for name, entry in list(files.items())[rank::ranks]:
            if sha256(path / name) != entry["sha256"]:
                return f"{name} does not match its checksum"
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO):
            return str(error)
        raise
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return None
