"""The hosts of a DeepSpeed host file: who they are, whether they answer, and what of the environment goes to them."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_LINE = re.compile(r"^(\S+)\s+slots=(\d+)\s*(#.*)?$")
# What a rank needs to know that another host can't: the user's own settings. No tokens, no keys.
_EXPORTED: tuple[str, ...] = (
    "NCCL_",
    "GLOO_",
    "UCX_",
    "RANDCOND_",
    "TORCH_",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "TRANSFORMERS_VERBOSITY",
    "DIFFUSERS_VERBOSITY",
)
_EXPORTED += ("OMP_NUM_THREADS", "LD_LIBRARY_PATH", "CUDA_HOME", "DS_ACCELERATOR", "TRITON_CACHE_DIR")
# ssh gives a silent host up after this many seconds: pdsh alone would wait for minutes.
SSH_OPTIONS = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o ConnectTimeout=10 -o BatchMode=yes"
SSH_TIMEOUT = 30.0  # seconds that a host has to answer in
PATIENCE = 600.0  # seconds for which a restart waits for hosts to come back


def read_hostfile(path: Path) -> dict[str, int]:
    """Host -> slots, in the order of the file; raises ValueError naming file and line."""
    if not path.is_file():
        raise ValueError(f"--hostfile: no such file: {path}")
    hosts: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line.strip())
        if not match:
            raise ValueError(f"{path}, line {number}: expected `name slots=8`, found {line.strip()!r}")
        if match[1] in hosts:
            raise ValueError(f"{path}, line {number}: {match[1]} is named twice")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ValueError(f"{path}: names no host; one a line: `name slots=8`")
    return hosts


def unreachable(hosts: list[str]) -> list[str]:
    """Those that don't answer `ssh HOST true` without a password."""

    def answers(host: str) -> bool:
        command = ["ssh", *SSH_OPTIONS.split(), host, "true"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SSH_TIMEOUT)
        except subprocess.TimeoutExpired:  # its sshd lives, its shell hangs: a home folder that is gone, say
            return False
        return done.returncode == 0

    with ThreadPoolExecutor(32) as threads:
        return [host for host, there in zip(hosts, threads.map(answers, hosts), strict=True) if not there]


def wait_for_hosts(hosts: list[str], patience: float, enough: Callable[[], bool] = lambda: False) -> None:
    """Returns once all answer; raises ValueError naming those that don't after about `patience` seconds.

    `enough`: asked now and then, whether to return without them.
    """
    deadline = time.monotonic() + patience
    while not enough() and (missing := unreachable(hosts)):
        if time.monotonic() > deadline:
            raise ValueError(f"no answer to `ssh HOST true` from {', '.join(missing)}; is a key without password set?")
        print(f"waiting for {', '.join(missing)}", flush=True)
        time.sleep(5)


def environment_lines(environment: dict[str, str]) -> str:
    """A `.deepspeed_env` (lines NAME=value, later ones win): the user's own one, and what of this shell ranks need."""
    lines = []
    for folder in (Path.home(), Path()):
        own = folder / ".deepspeed_env"
        if own.is_file():
            lines += [line for line in own.read_text().splitlines() if "=" in line]
    for name, value in sorted(environment.items()):
        if name.startswith(_EXPORTED) and "\n" not in value:
            lines.append(f"{name}={_inside_quotes(value)}")
    return "\n".join(lines) + "\n"


def _inside_quotes(value: str) -> str:
    """DeepSpeed puts a value with special characters between double quotes, and leaves it as it is otherwise."""
    return re.sub(r'([\\"$`])', r"\\\1", value)


def check_folder_name(folder: str) -> None:
    """Refuses a working directory that DeepSpeed would not get through pdsh in one piece."""
    if re.search(r"[^\w@%+=:,./-]", folder):
        raise ValueError(f"--hostfile: the working directory {folder!r} has characters that pdsh would not keep; move")


def host_environment(name_of_file: Path) -> dict[str, str]:
    """What the deepspeed launcher itself needs in its environment for several hosts."""
    ssh = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    return {"DS_ENV_FILE": str(name_of_file.resolve()), "PDSH_SSH_ARGS_APPEND": f"{ssh} {SSH_OPTIONS}".strip()}
