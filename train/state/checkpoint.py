"""Checkpoints: each rank writes its pieces of the fp32 state, aside from the training; portable between engines.

A folder per step: rank-NNNN.safetensors (keys "kind/parameter@start", flat fp32 runs), and a manifest with shapes and
checksums that the first rank writes last, before the rename: what has a name is whole. Any engine at any world size
reads the runs it needs. The newest checkpoint whose checksums hold is used.
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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, remove, sha256, sync, write_json, write_text
from randcond.launch.runtime.logs import log
from randcond.train.engine.base import STATE_KINDS, State

Shapes = dict[str, tuple[int, ...]]
FINAL_WRITE_TIMEOUT = 30.0  # seconds that a checkpoint under way has to become whole after an error


class Writer:
    """Writes checkpoints from a thread of its own; at most one is under way. A context: on leaving it is finished."""

    def __init__(self, folder: Path, rank: int, ranks: int, keep: int, keep_every: int = 0) -> None:
        self.folder, self.rank, self.ranks = folder, rank, ranks
        self.keep, self.keep_every = keep, keep_every
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._abandoned = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends with the last one whole; after an error, whole or given up: the other ranks may be gone."""
        if kind is None:
            self.wait()
        elif self._pending is not None:
            wait([self._pending], timeout=FINAL_WRITE_TIMEOUT)
            self._abandoned.set()

    def save(self, step: int, state: State, shapes: Shapes, facts: dict[str, Any]) -> None:
        """Hands over this rank's state of a step (a copy); raises what writing the one before raised."""
        self.wait()
        self._pending = self._thread.submit(self._write, step, state, shapes, facts)

    def check(self) -> None:
        """Raises what writing the last one raised, if it has; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when what was handed over is whole on the disk; raises what writing it raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, step: int, state: State, shapes: Shapes, facts: dict[str, Any]) -> None:
        path = step_folder(self.folder, step)
        aside = _aside(path)
        aside.mkdir(parents=True, exist_ok=True)
        file = aside / f"rank-{self.rank:04d}.safetensors"
        save_file({f"{kind}/{key}": run for kind, runs in state.items() for key, run in runs.items()}, file)
        sync(file)
        runs = {kind: {key: run.numel() for key, run in held.items()} for kind, held in state.items()}
        note = file.with_suffix(".json")
        unread = note.with_suffix(".part")
        unread.write_text(json.dumps({"sha256": sha256(file), "runs": runs}))
        unread.rename(note)  # this rank's last touch: the first one may now rename the folder
        if self.rank == 0:
            self._commit(path, aside, {"step": step, **facts, "shapes": shapes})

    def _commit(self, path: Path, aside: Path, manifest: dict[str, Any]) -> None:
        """Waits for the other ranks' files (a rank that dies ends the job, and this thread with it) and renames."""
        notes = [aside / f"rank-{rank:04d}.json" for rank in range(self.ranks)]
        # Listed, not asked for one by one: NFS keeps for up to a minute that a file is not there.
        while not {note.name for note in notes} <= set(os.listdir(aside)):
            if self._abandoned.is_set():
                raise RuntimeError(f"{path}: not every rank has written its file")
            time.sleep(0.05)
        files = {note.with_suffix(".safetensors").name: read_json(note) for note in notes}
        for note in notes:
            note.unlink()
        write_json(aside / "manifest.json", {**manifest, "files": files})
        write_text(aside / "manifest.sha256", sha256(aside / "manifest.json"))
        sync(aside, deep=False)
        aside.rename(path)
        sync(self.folder, deep=False)
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            if not self.keep_every or int(old.name.removeprefix("step-")) % self.keep_every:
                _retire(old)


class StoredCheckpoint:
    """A checkpoint, opened: any run of any tensor of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_json(path / "manifest.json")
        self.shapes: Shapes = {name: tuple(shape) for name, shape in self.manifest["shapes"].items()}
        self._runs: dict[tuple[str, str], list[tuple[int, int, str]]] = {}  # (kind, name) -> (start, stop, file)
        for file, entry in self.manifest["files"].items():
            for kind, runs in entry["runs"].items():
                for key, length in runs.items():
                    name, start = key.rsplit("@", 1)
                    self._runs.setdefault((kind, name), []).append((int(start), int(start) + length, file))
        self._open: dict[str, Any] = {}

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Values [stop - start] of a flattened tensor; raises UserError when the checkpoint does not hold them."""
        found = []
        at = start
        for first, last, file in sorted(self._runs.get((kind, name), [])):
            if first <= at < min(last, stop):
                end = min(last, stop)
                found.append(self._file(file).get_slice(f"{kind}/{name}@{first}")[at - first : end - first])
                at = end
        if at < stop:
            raise UserError(f"{self.path}: holds no {kind} of {name} from {at} to {stop}")
        return torch.cat(found) if found else torch.empty(0)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.path / name, framework="pt")
        return self._open[name]

    def full(self, kind: str) -> dict[str, Tensor]:
        """All tensors of a kind, whole."""
        assert kind in STATE_KINDS, kind
        sizes = {name: torch.Size(shape) for name, shape in self.shapes.items()}
        return {name: self.read(kind, name, 0, size.numel()).reshape(size) for name, size in sizes.items()}


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _retire(path: Path) -> None:
    """Removes an old checkpoint; one that somebody reads, copies or removes just now does not end the run."""
    try:
        path.rename(_aside(path))
        remove(_aside(path))
    except OSError as error:
        log.info(f"checkpoint {path}: not all of it could be removed ({error}); the next start tries again")


def clear_unfinished(folder: Path) -> None:
    """Removes what a killed run left half written, and the rest of old ones; the first rank calls it before any."""
    for part in folder.glob(".step-*.part"):
        try:
            remove(part)
        except OSError as error:
            log.info(f"{part}: could not be removed ({error})")


def set_aside_after(folder: Path, step: int) -> None:
    """Takes the name from checkpoints beyond a step, passed over as damaged: the run will write them again."""
    for path in sorted(folder.glob("step-*")):
        if path > step_folder(folder, step):
            aside = path.with_name(f"damaged-{path.name}")
            remove(aside)
            path.rename(aside)


def newest_valid(
    folder: Path,
    rank: int = 0,
    ranks: int = 1,
    broadcast: Callable[[Any], Any] = lambda value: value,
    collect: Callable[[Any], list[Any]] = lambda value: [value],
) -> StoredCheckpoint | None:
    """The newest checkpoint without a fault, None when there is none; says which ones it passed over.

    The first rank says which there are (a host may see a shared folder as it was a minute ago); every rank checks its
    share of the files. `broadcast`, `collect`: the engine's.
    """
    for name in broadcast([path.name for path in sorted(folder.glob("step-*"), reverse=True)]):
        faults = [fault for fault in collect(_fault(folder / name, rank, ranks)) if fault]
        if not faults:
            return StoredCheckpoint(folder / name)
        if rank == 0:
            log.info(f"checkpoint {folder / name} is damaged ({faults[0]}); falling back to the one before")
    return None


def _fault(path: Path, rank: int, ranks: int) -> str | None:
    """What is wrong with this rank's share of a checkpoint, None when it is sound.

    Raises OSError where a file is there and can't be read now: no reason to give up what is sound.
    """
    try:
        if (path / "manifest.sha256").read_text() != sha256(path / "manifest.json"):
            return "manifest.json does not match its checksum"
        files = read_json(path / "manifest.json")["files"]
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
