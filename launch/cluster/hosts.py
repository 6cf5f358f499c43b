"""The hosts of a DeepSpeed host file: who they are, whether they answer, and what of the environment goes to them."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.launch.runtime.logs import log

_LINE = re.compile(r"^(\S+)\s+slots=(\d+)\s*(#.*)?$")
# What a rank needs to know that another host can't: the user's own settings. No tokens, no keys, no proxies (they may
# hold a password). All names that begin so.
EXPORTED = (
    "CUDA_DEVICE_",
    "CUDA_HOME",
    "CUDA_LAUNCH_BLOCKING",
    "DIFFUSERS_VERBOSITY",
    "DS_ACCELERATOR",
    "FI_",
    "GLOO_",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_OFFLINE",
    "LD_LIBRARY_PATH",
    "NCCL_",
    "OMP_NUM_THREADS",
    "PYTORCH_",
    "RANDCOND_",
    "TORCHINDUCTOR_",
    "TORCH_",
    "TRANSFORMERS_VERBOSITY",
    "TRITON_",
    "UCX_",
)
# ssh gives a silent host up after this many seconds: pdsh alone would wait for minutes.
SSH_OPTIONS = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o ConnectTimeout=10 -o BatchMode=yes"
SSH_TIMEOUT = 30.0  # seconds that a host has to answer in
PATIENCE = 1800.0  # seconds that a run which has begun waits for hosts to come back: a GPU server boots long


def read_hostfile(path: Path) -> dict[str, int]:
    """Host -> slots, in the order of the file; raises UserError naming file and line."""
    if not path.is_file():
        raise UserError(f"--hostfile: no such file: {path}")
    hosts: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line.strip())
        if not match:
            raise UserError(f"{path}, line {number}: expected `name slots=8`, found {line.strip()!r}")
        if match[1] in hosts:
            raise UserError(f"{path}, line {number}: {match[1]} is named twice")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"{path}: names no host; one a line: `name slots=8`")
    return hosts


def check_tools() -> None:
    """Raises UserError where DeepSpeed's way to other hosts is not installed."""
    if missing := [tool for tool in ("pdsh", "ssh") if not shutil.which(tool)]:
        raise UserError(f"--hostfile: {' and '.join(missing)} not found here: install pdsh and openssh-client")


def unreachable(hosts: list[str]) -> dict[str, str]:
    """Those that don't answer `ssh HOST true` without a password, and what ssh said."""

    def failure(host: str) -> str:
        command = ["ssh", *SSH_OPTIONS.split(), host, "true"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SSH_TIMEOUT
            )
        except subprocess.TimeoutExpired:  # its sshd lives, its shell hangs: a home folder that is gone, say
            return f"nothing within {SSH_TIMEOUT:g} s"
        said = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        return said[-1].strip() if done.returncode else ""

    with ThreadPoolExecutor(32) as threads:
        return {host: why for host, why in zip(hosts, threads.map(failure, hosts), strict=True) if why}


def wait_for_hosts(hosts: list[str], patience: float, enough: Callable[[], bool] = lambda: False) -> None:
    """Returns once all answer; raises UserError naming those that don't after about `patience` seconds.

    `enough`: asked now and then, whether to return without them.
    """
    deadline = time.monotonic() + patience
    while not enough() and (missing := unreachable(hosts)):
        if time.monotonic() > deadline:
            reasons = "; ".join(f"{host} ({why})" for host, why in missing.items())
            raise UserError(f"no answer to `ssh HOST true` from {reasons}; each must answer without a password")
        log.info(f"waiting for {', '.join(missing)}")
        time.sleep(5)


def environment_lines(environment: dict[str, str]) -> str:
    """A `.deepspeed_env` (lines NAME=value, later ones win): what of this shell ranks need, then the user's own one.

    Raises UserError naming a line of the user's that is none.
    """
    lines = []
    for name, value in sorted(environment.items()):
        if name.startswith(EXPORTED) and "\n" not in value:
            lines.append(f"{name}={_inside_quotes(value)}")
    return "\n".join(lines + own_environment()) + "\n"


def own_environment() -> list[str]:
    """The lines of ~/.deepspeed_env and of the working folder's."""
    lines = []
    for file in (Path.home() / ".deepspeed_env", Path(".deepspeed_env")):
        for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not re.match(r"[A-Za-z_]\w*=", line):  # DeepSpeed puts `export ` before it, in a remote shell
                raise UserError(f"{file}, line {number}: expected `NAME=value`, found {line.split('=')[0].strip()!r}")
            lines.append(re.sub(r'="(.*)"\s*$', r"=\1", line))  # DeepSpeed puts quotes of its own where they are needed
    return lines


def _inside_quotes(value: str) -> str:
    """DeepSpeed puts a value with special characters between double quotes, and leaves it as it is otherwise."""
    return re.sub(r'([\\"$`])', r"\\\1", value)


def check_folder_name(folder: str) -> None:
    """Refuses a working directory that DeepSpeed would not get through pdsh in one piece."""
    if re.search(r"[^\w@%+=:,./-]", folder):
        raise UserError(f"--hostfile: the working directory {folder!r} has characters that pdsh would not keep; move")


def host_environment(name_of_file: Path) -> dict[str, str]:
    """What the deepspeed launcher itself needs in its environment for several hosts."""
    ssh = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    return {"DS_ENV_FILE": str(name_of_file.resolve()), "PDSH_SSH_ARGS_APPEND": f"{ssh} {SSH_OPTIONS}".strip()}
