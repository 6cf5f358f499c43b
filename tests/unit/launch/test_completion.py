"""Shell completion: what a real bash proposes, and that its script holds every command, experiment and key."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from randcond.launch.cli import GROUPS, TOOLS
from randcond.launch.command_stubs import commands_of
from randcond.launch.config.experiments import experiment_names
from randcond.launch.config_command import all_keys
from tests.cluster.packages import need
from tests.support.patience import HANG

ASK = """
. "$1"; shift
COMP_LINE=$1; COMP_POINT=${#COMP_LINE}
_randcond 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


FLOW = {"demo-flow", "demo-flow-with", "demo-flow-without"}


@cache
def script() -> str:
    command = [sys.executable, "-m", "randcond.launch.cli", "completion", "bash"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def proposed(folder: Path, line: str) -> set[str]:
    """Returns what bash proposes for a line that ends at the cursor."""
    (folder / "completion.bash").write_text(script())
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", "completion.bash", line], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("randcond laun", {"launch"}),
        ("randcond --ver", {"--version"}),
        ("randcond cache pre", {"preview"}),
        ("randcond cache preview --te", {"--teacher"}),
        ("randcond run ", {"check", "pool", "cache", "train", "eval", "report", "all"}),
        ("randcond run all demo-", {"demo-with", "demo-without", *FLOW}),
        ("randcond run all my", {"my own.yaml"}),
        ("randcond run train demo-with train.st", {"train.steps="}),
        ("randcond run train demo-with a=1 --gpus 2 train.st", {"train.steps="}),
        ("randcond run train demo-with eval.weights=", {"raw", "ema"}),
        ("randcond run train demo-with eval.weights=e", {"ema"}),
        ("randcond run train demo-with engine.activation_checkpointing=", {"true", "false"}),
        ("randcond run train demo-with paths.run=my", {"my own.yaml"}),
        ("randcond run train --launcher ", {"deepspeed", "torchrun", "slurm"}),
        ("randcond run train --launcher=tor", {"torchrun"}),
        ("randcond run train --hostfile my", {"my own.yaml"}),
        ("randcond run --dry-run tr", {"train"}),
        ("randcond run train --dry", {"--dry-run"}),
        ("randcond export demo-with --dt", {"--dtype"}),
        ("randcond plan --gpu h200", {"h200", "h200-nvl"}),
        ("randcond config conditioning.p_", {"conditioning.p_args"}),
        ("randcond fetch laion-212", {"laion-212k"}),
        ("randcond completion z", {"zsh"}),
        ("randcond report demo-with --out my", {"my own.yaml"}),
        ("randcond nothing at al", {""}),
    ],
)
def test_what_bash_proposes(tmp_path: Path, line: str, expected: set[str]) -> None:
    (tmp_path / "my own.yaml").write_text("")
    assert proposed(tmp_path, line) == expected


def test_every_command_experiment_and_key_is_proposed(tmp_path: Path) -> None:
    assert {"run", "launch", *GROUPS, *TOOLS} < proposed(tmp_path, "randcond ")
    for group, module in GROUPS.items():
        assert set(commands_of(module)) == proposed(tmp_path, f"randcond {group} ")
    assert set(experiment_names()) < proposed(tmp_path, "randcond run train ")
    keys = {f"{key.name}=" for key in all_keys()}
    assert keys == proposed(tmp_path, "randcond run train demo-with ")


def test_a_tab_in_bash(tmp_path: Path) -> None:
    """Types into an interactive bash. Other shells of this machine read the same names."""
    (tmp_path / "completion.bash").write_text(script())
    pid, line = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    os.write(line, b"randcond() { printf '<%s>' \"$@\"; echo; }; . ./completion.bash; echo re''ady\n")
    read_until(line, b"ready")
    os.write(line, b"randcond expo\tdemo-witho\ttrain.step\t7\n")
    read_until(line, b"<export><demo-without><train.steps=7>")
    os.write(line, b"exit\n")
    os.waitpid(pid, 0)


def read_until(line: int, text: bytes) -> None:
    said, deadline = b"", time.monotonic() + HANG
    while text not in said:
        assert time.monotonic() < deadline, said
        if select.select([line], [], [], 1)[0]:
            said += os.read(line, 65536)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("zsh") and os.geteuid() != 0, reason="needs zsh, or root to install it")
def test_zsh_reads_its_script(tmp_path: Path) -> None:
    if not shutil.which("zsh"):
        need({"zsh": "zsh"})
    command = [sys.executable, "-m", "randcond.launch.cli", "completion", "zsh"]
    (tmp_path / "completion.zsh").write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ask = "autoload -Uz compinit; compinit -D; . ./completion.zsh; _randcond_names tra randcond run"
    done = subprocess.run(["zsh", "-f", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["train"]
