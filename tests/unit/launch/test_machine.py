"""What a machine gives a process: ranks of another job, visible GPUs, the user's name and folders, host files."""

import getpass
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from randcond.launch.cluster import commands
from randcond.launch.cluster.commands import plan
from randcond.launch.cluster.hosts import environment_lines, read_hostfile
from randcond.launch.cluster.place import Place
from randcond.launch.config import gpus
from randcond.launch.errors import UserError
from randcond.launch.machine import visible_gpus as module
from randcond.launch.machine.launcher_ranks import forget_ranks, settle_ranks
from randcond.launch.machine.visible_gpus import choose_gpus, count_gpus, gpus_here, visible_gpus
from tests.support.users import AS_NOBODY, needs_another_user

MEET = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {}),
        ({"RANK": "3", **MEET}, {}),  # no world size: nobody's rank
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "3"}, {}),
        ({**MEET, "TORCHELASTIC_USE_AGENT_STORE": "True"}, {}),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **MEET}, {"RANK", "WORLD_SIZE", "LOCAL_RANK"}),
        ({"RANK": "1", "WORLD_SIZE": "2", **MEET}, {"RANK", "WORLD_SIZE", *MEET}),
    ],
)
def test_ranks_of_another_job_are_forgotten(given: dict[str, str], kept: set[str]) -> None:
    environment = {"PATH": "/bin", **given}
    settle_ranks(environment)
    assert set(environment) == {"PATH", *kept}
    forget_ranks(environment)
    assert set(environment) == {"PATH"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4", **MEET}, "RANK=4 and WORLD_SIZE=4 in the environment: no such rank"),
        ({"RANK": "one", "WORLD_SIZE": "4", **MEET}, "RANK=one in the environment: expected a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "node1"}, "WORLD_SIZE=4, but MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "4", **MEET, "MASTER_PORT": "http"}, "MASTER_PORT=http in the environment"),
    ],
)
def test_ranks_that_can_not_be(given: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}.*unset RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        settle_ranks(given)


def on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None) -> None:
    """This machine has no GPU: says that it has some."""
    for place in (module, commands, gpus):
        monkeypatch.setattr(place, "nvidia_here", lambda: True)
    monkeypatch.setattr(commands, "count_gpus", lambda: count)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, None),
        ("4, 5", ["4", "5"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),  # as CUDA does
        ("NoDevFiles", []),
        ("GPU-8932f937-d72c,MIG-GPU-1/2/0", ["GPU-8932f937-d72c", "MIG-GPU-1/2/0"]),
    ],
)
def test_visible_gpus(visible: str | None, names: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine_with_gpus(monkeypatch, 8, visible)
    assert visible_gpus() == names and gpus_here() == (names != [])


@pytest.mark.parametrize(
    ("visible", "launched"),
    [
        (None, "deepspeed.launcher.runner .*--num_accelerators 2 --module randcond.train"),
        ("4,5,6", "deepspeed.launcher.runner .*--include localhost:4,5 --module randcond.train"),
        # The deepspeed launcher would set the variable to 0,1 for its ranks. torchrun leaves it as it is.
        ("GPU-8932f937,GPU-1", "randcond.launch.cluster.torchrun --standalone --nproc-per-node=2 -m randcond.train"),
        ("-1", "randcond.launch.cluster.torchrun --standalone --nproc-per-node=2 -m randcond.train"),
        ("", "randcond.launch.cluster.torchrun --standalone --nproc-per-node=2 -m randcond.train"),
    ],
)
def test_ranks_get_the_gpus_that_are_visible(
    visible: str | None, launched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine_with_gpus(monkeypatch, 8, visible)
    (step,) = plan("train", "demo-with", [], Place(gpus=2))
    assert step.zero_means_done == ("torchrun" in launched) != step.needs_port
    assert re.search(launched, " ".join(step.command))
    one, *_ = plan("train", "demo-with", [], Place(gpus=1))  # torch reads the variable itself
    assert one.command[1:3] == ["-m", "randcond.train"]


@pytest.mark.parametrize(
    ("visible", "said"),
    [
        ("4,5", "lists 2 GPUs, but 3 ranks need one each; use --gpus 2"),
        ("1,1,2", "names a GPU twice, and CUDA then shows none"),
        ("MIG-a,MIG-b,MIG-c", r"a process sees one MIG device only.*use one rank \(--gpus 1\)"),
        ("0,1,9", "there is no GPU 9; this machine has 8, numbered from 0"),
    ],
)
def test_gpus_that_can_not_be_had(visible: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=f"^CUDA_VISIBLE_DEVICES={visible}.*{said}"):
        choose_gpus(3, installed=8)


def test_gpus_are_counted_by_their_devices(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one slots=8\ntwo slots=0\n", "line 2: host two has slots=0; give it a slot per GPU, or remove it"),
        ("# head\none\n", "line 2: expected `name slots=8`, found 'one'"),
        ("one slots=8\n\none slots=4\n", "line 3: host one is listed twice"),
        ("one slots=-1\n", "line 1: expected `name slots=8`, found 'one slots=-1'"),
        ("\n# only this\n", "lists no host; expected one per line"),
    ],
)
def test_a_wrong_host_file_is_named_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=rf"^{tmp_path}/hosts(, |: ){said}"):
        read_hostfile(tmp_path / "hosts")


def test_a_host_file_of_another_editor(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"\xef\xbb\xbfone slots=8\r\ntwo slots=8\r\n")
    assert read_hostfile(tmp_path / "hosts") == {"one": 8, "two": 8}


FOLDERS = """
import getpass, os, sys
from pathlib import Path
from randcond.launch.machine.user_folders import give_user_folders
print(give_user_folders())
print(give_user_folders())
print(getpass.getuser(), Path("~").expanduser())
for name in ("HF_HOME", "TRITON_HOME", "MPLCONFIGDIR", "TORCH_EXTENSIONS_DIR"):
    print(name, os.environ.get(name))
"""


def folders(tmp: Path, **environment: str) -> list[str]:
    """Returns what a process says whose user id has no entry in /etc/passwd."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    clean = {**kept, "TMPDIR": str(tmp), **environment}
    done = subprocess.run([*AS_NOBODY, sys.executable, "-c", FOLDERS], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_another_user
def test_a_user_without_an_entry_and_without_home(tmp_path: Path) -> None:
    note, again, user, *caches = folders(tmp_path)
    home = tmp_path / "randcond-54321/home"
    assert (
        note == (f"note: HOME is not set, and user id 54321 has no entry in /etc/passwd: HOME is {home} now")
        and not again
    )
    assert user == f"uid54321 {home}" and home.is_dir() and home.parent.stat().st_mode & 0o777 == 0o700
    assert caches == [f"{name} None" for name in ("HF_HOME", "TRITON_HOME", "MPLCONFIGDIR", "TORCH_EXTENSIONS_DIR")]


@needs_another_user
def test_a_home_that_can_not_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    for folder in (home, home / ".cache", home / ".cache/huggingface"):
        folder.chmod(0o555)
    note, again, user, *caches = folders(tmp_path, HOME=str(home), LOGNAME="me", TORCH_HOME="mine")
    own = tmp_path / "randcond-54321"
    assert f"note: {home} can't be written: caches go to {own}; set TRITON_HOME, MPLCONFIGDIR to choose" in note
    assert user == f"me {home}" and not again
    assert caches[0] == "HF_HOME None"  # models that are there already can be read
    assert caches[1:3] == [f"{name} {own / name.lower()}" for name in ("TRITON_HOME", "MPLCONFIGDIR")]
    assert caches[3] == "TORCH_EXTENSIONS_DIR None"  # in the environment, which this user can write


@needs_another_user
def test_the_home_of_another_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    home.chmod(0)
    note, again, _, *caches = folders(tmp_path, HOME=str(home))
    home.chmod(0o700)
    assert f"note: {home} can't be written: caches go to {tmp_path / 'randcond-54321'}" in note and not again
    assert caches[0] == f"HF_HOME {tmp_path / 'randcond-54321/hf_home'}"


@needs_another_user
def test_a_temporary_folder_that_somebody_else_made(tmp_path: Path) -> None:
    (tmp_path / "randcond-54321").write_text("")  # not ours, as a folder of another user
    note, _, user, *_ = folders(tmp_path)
    assert str(tmp_path / "randcond-54321/") not in note and f"{tmp_path}/randcond-" in note
    assert user.startswith(f"uid54321 {tmp_path}/randcond-")


def test_an_ordinary_user_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from randcond.launch.machine.user_folders import give_user_folders

    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    assert give_user_folders() == "" and dict(os.environ) == before and getpass.getuser()


def test_folders_of_this_host_are_not_given_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    own = f"{tempfile.gettempdir()}/randcond-54321/triton_home"
    assert environment_lines({"TRITON_HOME": own, "TRITON_CACHE_DIR": "/mine"}) == "TRITON_CACHE_DIR=/mine\n"
