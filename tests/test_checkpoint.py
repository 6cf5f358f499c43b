"""Checkpoints: whole or absent, checked, the damaged one passed over; locks that die with their holder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from randcond.data.files import written_whole
from randcond.data.lock import claim_each, hold
from randcond.train import checkpoint

STATE = {"weights": {"a": torch.arange(4.0)}, "ema": {"a": torch.ones(4)}}


def test_the_newest_sound_checkpoint_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.load_newest(tmp_path) is None
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, {**STATE, "weights": {"a": torch.full((4,), float(step))}}, {"seconds": 1}, 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000010", "step-00000015"]
    state, manifest = checkpoint.load_newest(tmp_path) or pytest.fail("nothing loaded")
    assert manifest["step"] == 15 and state["weights"]["a"][0] == 15


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "manifest.json"])
def test_any_damaged_byte_falls_back_to_the_one_before(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (5, 10):
        checkpoint.save(tmp_path, step, STATE, {"seconds": 1}, 3)
    path = tmp_path / "step-00000010" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(bytes(data))
    _, manifest = checkpoint.load_newest(tmp_path) or pytest.fail("nothing loaded")
    said = capsys.readouterr().out
    assert manifest["step"] == 5
    assert "step-00000010 is damaged" in said and "falling back" in said


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["kept.txt"]


def test_pieces_are_claimed_once_and_a_killed_workers_piece_is_free_again(tmp_path: Path) -> None:
    pieces = [tmp_path / str(number) for number in range(4)]
    code = (
        "import sys, time; from pathlib import Path; from randcond.data.lock import claim_each\n"
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
    assert mine == [1, 2, 3]  # the other process holds 0
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert list(claim_each(pieces, Path.is_file)) == [0]


def test_one_run_folder_has_one_writer(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from randcond.data.lock import hold\n"
        "hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="is being written by another run"):
        hold(tmp_path, patience=0.5)
    other.kill()
    other.wait()
    began = time.monotonic()
    hold(tmp_path)
    assert time.monotonic() - began < 5
