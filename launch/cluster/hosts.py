"""The hosts of a DeepSpeed host file: reads the file, checks that they answer, selects the environment they get."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.launch.machine.user_folders import is_own_folder
from randcond.launch.runtime.logs import log
from randcond.launch.urls import VEIL

_LINE = re.compile(r"^(\S+)\s+slots=(\d+)\s*(#.*)?$")
# Environment variables that ranks on other hosts get: settings of the user that those hosts don't have. Each entry is a
# prefix. Tokens, keys and proxies (which may hold a password) are left out.
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
# With these, ssh gives up on a silent host after 15 seconds. pdsh alone would wait for minutes.
SSH_OPTIONS = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o ConnectTimeout=10 -o BatchMode=yes"
SSH_TIMEOUT = 30.0  # seconds within which a host must answer
PATIENCE = 1800.0  # seconds that a started run waits for lost hosts to come back; a GPU server boots slowly


def read_hostfile(path: Path) -> dict[str, int]:
    """Returns host -> slots in the order of the file. Raises UserError that names file and line."""
    if not path.is_file():
        raise UserError(f"--hostfile: no such file: {path}")
    hosts: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--hostfile: {path}: not a text file ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line.strip())
        if not match:
            raise UserError(f"{path}, line {number}: expected `name slots=8`, found {line.strip()!r}")
        if match[1] in hosts:
            raise UserError(f"{path}, line {number}: host {match[1]} is listed twice; give each host one line")
        if not int(match[2]):
            raise UserError(f"{path}, line {number}: host {match[1]} has slots=0; give it a slot per GPU, or remove it")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"{path}: lists no host; expected one per line: `name slots=8`")
    return hosts


def check_tools() -> None:
    """Raises UserError if pdsh or ssh, by which DeepSpeed reaches other hosts, is not installed."""
    if missing := [tool for tool in ("pdsh", "ssh") if not shutil.which(tool)]:
        raise UserError(f"--hostfile: {' and '.join(missing)} not found here: install pdsh and openssh-client")


def unreachable(hosts: list[str]) -> dict[str, str]:
    """Returns the hosts that don't answer `ssh HOST true` without a password, each with ssh's error."""

    def ssh_error(host: str) -> str:
        command = ["ssh", *SSH_OPTIONS.split(), host, "true"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SSH_TIMEOUT
            )
        except (
            subprocess.TimeoutExpired
        ):  # sshd answers, but the shell hangs: for example, the home folder is unavailable
            return f"no answer within {SSH_TIMEOUT:g} s"
        lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        return lines[-1].strip() if done.returncode else ""

    with ThreadPoolExecutor(32) as threads:
        return {host: error for host, error in zip(hosts, threads.map(ssh_error, hosts), strict=True) if error}


def wait_for_hosts(hosts: list[str], patience: float, stop_waiting: Callable[[], bool] = lambda: False) -> None:
    """Waits until all hosts answer. Raises UserError that names those that don't after about `patience` seconds.

    `stop_waiting`: checked before each try. If it returns True, this function returns at once.
    """
    deadline = time.monotonic() + patience
    while not stop_waiting() and (missing := unreachable(hosts)):
        if time.monotonic() > deadline:
            reasons = "; ".join(f"{host} ({error})" for host, error in missing.items())
            raise UserError(f"no answer to `ssh HOST true` from {reasons}; each must answer without a password")
        log.info(f"waiting for {', '.join(missing)} to answer")
        time.sleep(5)


def environment_lines(environment: dict[str, str]) -> str:
    """Returns the text of a `.deepspeed_env` file for the ranks: lines NAME=value, of which later ones win.

    First come the variables of `environment` that ranks need (EXPORTED), then the user's own `.deepspeed_env` lines.
    Raises UserError that names file and line if a line of the user's is malformed.
    """
    lines = []
    for name, value in sorted(environment.items()):
        here_only = name.startswith(VEIL) or is_own_folder(value)
        if name.startswith(EXPORTED) and not here_only and "\n" not in value:
            lines.append(f"{name}={_escape(value)}")
    return "\n".join(lines + own_environment()) + "\n"


def own_environment() -> list[str]:
    """Returns the lines of ~/.deepspeed_env and of .deepspeed_env in the working folder.

    Raises UserError that names file and line if a line is malformed.
    """
    lines = []
    for file in (Path.home() / ".deepspeed_env", Path(".deepspeed_env")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else [], 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not re.match(r"[A-Za-z_]\w*=", line):  # DeepSpeed itself adds `export ` before it
                raise UserError(f"{file}, line {number}: expected `NAME=value`, found {line.split('=')[0].strip()!r}")
            lines.append(re.sub(r'="(.*)"\s*$', r"=\1", line))  # DeepSpeed adds its own quotes where needed
    return lines


def _escape(value: str) -> str:
    """Escapes a value for the double quotes that DeepSpeed puts around values with special characters."""
    return re.sub(r'([\\"$`])', r"\\\1", value)


def check_folder_name(folder: str, what: str = "the working directory") -> None:
    """Raises UserError if a path has characters (spaces, quotes) that DeepSpeed can't pass through pdsh.

    `what`: names the path.
    """
    if re.search(r"[^\w@%+=:,./-]", folder):
        raise UserError(
            f"--hostfile: {what} {folder!r} has characters that pdsh does not pass on; "
            "use a path that has only letters, digits and @%+=:,./-_"
        )


def host_environment(environment_file: Path) -> dict[str, str]:
    """Returns the environment variables that the deepspeed launcher itself needs for several hosts."""
    ssh = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    return {"DS_ENV_FILE": str(environment_file.resolve()), "PDSH_SSH_ARGS_APPEND": f"{ssh} {SSH_OPTIONS}".strip()}
