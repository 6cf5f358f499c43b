"""Checkpoints are complete or absent, and damaged ones are skipped; locks end with their process."""

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from randcond.launch.errors import UserError
from randcond.launch.runtime import files
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import atomic_write, sync
from randcond.launch.runtime.locks import claim_each, hold_lock
from randcond.train.engine import STATE_KINDS
from randcond.train.state import checkpoint

SHAPES = {"a": (3, 4), "b": (5,)}


def write(folder: Path, step: int, ranks: int = 2, keep: int = 2, keep_every: int = 0) -> None:
    """Writes a checkpoint: value i of every flattened tensor is step + i, and the ranks have unequal parts of it."""
    writers = [checkpoint.Writer(folder, rank, ranks, keep, keep_every) for rank in range(ranks)]
    for rank, writer in enumerate(writers):
        state: checkpoint.State = {kind: {} for kind in STATE_KINDS}
        for name, shape in SHAPES.items():
            size = torch.Size(shape).numel()
            start, stop = (rank * size // ranks, (rank + 1) * size // ranks)
            for held in state.values():
                held[f"{name}@{start}"] = step + torch.arange(start, stop).float()
        writer.save(step, state, SHAPES, {"seconds": 1})
    for writer in writers:
        writer.wait()


def test_the_newest_is_read_in_any_cut(tmp_path: Path) -> None:
    assert checkpoint.newest_valid(tmp_path) is None
    for step in (5, 10, 15):
        write(tmp_path, step, ranks=3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000010", "step-00000015"]
    stored = checkpoint.newest_valid(tmp_path) or pytest.fail("nothing loaded")
    assert stored.manifest["step"] == 15 and stored.shapes == SHAPES
    for start in range(12):
        for stop in range(start, 13):
            assert stored.read("ema", "a", start, stop).tolist() == [15.0 + i for i in range(start, stop)]
    assert torch.equal(stored.full("weights")["a"], 15 + torch.arange(12.0).reshape(3, 4))
    with pytest.raises(UserError, match="has no ema values 12 to 13 of a"):
        stored.read("ema", "a", 0, 13)


def test_a_rank_is_done_with_the_folder_once_its_note_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 renames the folder once all notes are there. So a rank must not use the folder after its own note.

    Here every sync of a folder by rank 1 is slow: a sync after its note would fail.
    """

    def slow(path: Path, deep: bool = True) -> None:
        time.sleep(0.3 if threading.current_thread() is not quick and path.is_dir() else 0)
        sync(path, deep)

    writers = [checkpoint.Writer(tmp_path, rank, 2, 2) for rank in range(2)]
    quick = writers[0]._thread.submit(threading.current_thread).result()
    monkeypatch.setattr(files, "sync", slow)
    for rank, writer in enumerate(writers):
        writer.save(5, {kind: {f"b@{rank}": torch.ones(1)} for kind in STATE_KINDS}, {"b": (2,)}, {})
    for writer in writers:
        writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_an_old_one_that_can_not_be_removed_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    write(tmp_path, 5, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "remove", busy)
        write(tmp_path, 10, keep=1)
        checkpoint.clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-00000005.part", "step-00000010"]
    assert "step-00000005: could not be removed completely" in capsys.readouterr().out
    checkpoint.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_what_can_not_be_read_now_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that can't be read at the moment raises its error; the checkpoint is not skipped as damaged."""
    write(tmp_path, 5)

    def stale(path: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(checkpoint, "sha256", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        checkpoint.newest_valid(tmp_path)


def test_the_first_rank_says_what_another_one_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 5)
    assert checkpoint.newest_valid(tmp_path, 0, 2, collect=lambda mine: [mine, "rank-0001 is torn"]) is None
    assert "is damaged (rank-0001 is torn)" in capsys.readouterr().out


def test_a_claim_that_was_removed_on_another_host_is_held_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS raises ESTALE if another host removes the file after it is opened here and before it is locked."""
    flock, stale = fcntl.flock, [OSError(errno.ESTALE, "Stale file handle")]

    def once(handle: int, operation: int) -> None:
        if stale:
            raise stale.pop()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", once)
    for number in claim_each([tmp_path / "piece"], Path.is_file):
        (tmp_path / "piece").write_text(str(number))
    assert (tmp_path / "piece").read_text() == "0" and not stale


def test_of_two_containers_with_one_host_name_none_removes_what_the_other_writes(tmp_path: Path) -> None:
    """Both containers may use the same process numbers, so only files of the own PID namespace are removed.

    A file with an unexpected name is kept and causes no error.
    """
    here = f".text.{platform.node()}"
    ours = os.stat("/proc/self/ns/pid").st_ino
    names = [f"{here}.{ours + 1}.999999999.part", f"{here}.{ours}.odd.part", f"{here}.{ours}.999999999.part"]
    for name in names:
        (tmp_path / name).touch()
    files.write_text(tmp_path / "text", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"text", *names[:2]}


def test_every_nth_is_kept_for_good(tmp_path: Path) -> None:
    for step in (4, 5, 6, 7, 8, 9):
        write(tmp_path, step, keep=2, keep_every=4)
    kept = [int(path.name.removeprefix("step-")) for path in sorted(tmp_path.iterdir())]
    assert kept == [4, 8, 9]


def test_a_rank_that_never_writes_leaves_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 5)
    lone = checkpoint.Writer(tmp_path, 1, 2, 2)
    lone.save(10, {kind: {"a@0": torch.zeros(12)} for kind in STATE_KINDS}, SHAPES, {})
    lone.wait()
    stored = checkpoint.newest_valid(tmp_path) or pytest.fail("nothing loaded")
    assert stored.manifest["step"] == 5
    checkpoint.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_any_damaged_byte_falls_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In each file of the newest checkpoint, about 150 bytes are damaged, one at a time."""
    for step in (5, 10):
        write(tmp_path, step)
    for path in sorted((tmp_path / "step-00000010").iterdir()):
        sound = path.read_bytes()
        for place in range(0, len(sound), max(1, len(sound) // 150)):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x55]) + sound[place + 1 :])
            stored = checkpoint.newest_valid(tmp_path) or pytest.fail("nothing loaded")
            assert stored.manifest["step"] == 5, f"byte {place} of {path.name}"
        path.write_bytes(sound)
    said = capsys.readouterr().out
    assert "step-00000010 is damaged" in said and "falling back" in said
    assert (checkpoint.newest_valid(tmp_path) or pytest.fail("")).manifest["step"] == 10


def test_after_a_fallback_the_damaged_one_is_written_again(tmp_path: Path) -> None:
    for step in (5, 10):
        write(tmp_path, step)
    damaged = tmp_path / "step-00000010" / "rank-0000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    stored = checkpoint.newest_valid(tmp_path) or pytest.fail("nothing loaded")
    checkpoint.rename_damaged_after(tmp_path, stored.manifest["step"])
    for step in (8, 10):
        write(tmp_path, step, keep=2)
    assert (checkpoint.newest_valid(tmp_path) or pytest.fail("nothing loaded")).manifest["step"] == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "damaged-step-00000010",
        "step-00000008",
        "step-00000010",
    ]


def test_an_error_gives_up_a_checkpoint_that_another_rank_will_not_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the writer ends, too. Otherwise, Python would wait for it at exit."""
    monkeypatch.setattr(checkpoint, "FINAL_WRITE_TIMEOUT", 0.3)
    writer = checkpoint.Writer(tmp_path, 0, 2, 2)
    with pytest.raises(MemoryError), writer:
        writer.save(10, {kind: {"a@0": torch.zeros(12)} for kind in STATE_KINDS}, SHAPES, {})
        raise MemoryError
    assert writer._pending is not None and isinstance(writer._pending.exception(timeout=5), RuntimeError)
    assert checkpoint.newest_valid(tmp_path) is None


def test_of_two_long_lists_the_first_difference_is_said() -> None:
    found = {"cache": [f"{number:064x}" for number in range(208)], "seed": 1}
    wanted = {"cache": [*found["cache"][:100], "other", *found["cache"][101:]], "seed": 2}
    with pytest.raises(UserError) as caught:
        check_matches(found, wanted, "the run", "Give another folder.")
    said = f"cache[100] is '{100:064x}' there, 'other' here (of 208 entries there, 208 here); seed is 1 there, 2 here"
    assert str(caught.value) == f"the run does not match this experiment: {said}. Give another folder."
    with pytest.raises(UserError, match="cache has 208 entries there, 207 here"):
        check_matches(found, {"cache": found["cache"][:207]}, "the run", "")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["kept.txt"]


def test_pieces_are_claimed_once_and_a_killed_workers_piece_is_free_again(tmp_path: Path) -> None:
    pieces = [tmp_path / str(number) for number in range(4)]
    code = (
        "import sys, time; from pathlib import Path; from randcond.launch.runtime.locks import claim_each\n"
        "pieces = [Path(p) for p in sys.argv[1:]]\n"
        "for number in claim_each(pieces, Path.is_file):\n"
        "    print(number, flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, *map(str, pieces)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "0\n"
    mine = []
    for number in claim_each(pieces, Path.is_file):
        pieces[number].write_text("done")
        mine.append(number)
        if mine == [1, 2, 3]:  # the other process holds 0
            threading.Timer(1.0, other.kill).start()
    assert mine == [1, 2, 3, 0]
    assert list(claim_each(pieces, Path.is_file)) == []


def test_a_piece_is_held_while_it_is_finished_beside_the_next(tmp_path: Path) -> None:
    """With unfinished=1, the claims on the current and the previous piece are held. An error releases all claims."""
    pieces = [tmp_path / str(number) for number in range(4)]

    def held() -> list[int]:
        code = "import sys; from pathlib import Path; from randcond.launch.runtime.locks import _try_lock\n"
        code += "print([int(p) for p in '0123' if _try_lock(Path(sys.argv[1]) / f'.{p}.claim') is None])"
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        return list(json.loads(done.stdout))

    seen = []
    with pytest.raises(RuntimeError, match="the thread failed"):
        for number in claim_each(pieces, lambda path: _landed(path, seen), unfinished=1):
            seen.append(held())
            if number:
                pieces[number - 1].write_text("done")
    assert seen == [[0], [0, 1], [1, 2], [2, 3]]
    assert held() == []


def _landed(path: Path, seen: list[list[int]]) -> bool:
    if len(seen) == 4:  # all are started, the last one is not finished
        raise RuntimeError("the thread failed")
    return path.is_file()


def test_one_run_folder_has_one_writer(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from randcond.launch.runtime.locks import hold_lock\n"
        "hold_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="is being written by another run"):
        hold_lock(tmp_path, patience=0.5)
    other.kill()
    other.wait()
    hold_lock(tmp_path, patience=5.0)  # the system releases the lock of a dead process
