"""torchrun for our stages: says that it waits for other hosts, and ends with the exit code of the first failed rank.

torchrun itself ends with 1 and a traceback of its own, whatever the rank has said and however it ended.
"""

import logging
import os
import re
import socket
import sys
import threading

import psutil

from randcond.launch.machine.network_interface import address_to, addresses_of
from randcond.launch.runtime.exit_codes import LOST_RANK

FIRST_WORD = 10.0  # seconds of waiting for other hosts before the first line about it
NEXT_WORD = 30.0
_LEVEL = "TORCH_CPP_LOG_LEVEL"


def main(arguments: list[str]) -> int:
    """Runs torchrun with its own arguments. Returns the exit code."""
    level = os.environ.get(_LEVEL, "WARNING")
    os.environ[_LEVEL] = "FATAL"  # torch reads it once; a host that does not answer would get a C++ trace
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main as torchrun

    os.environ[_LEVEL] = level  # of the ranks
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)  # the ranks say it
    if place := next((word.partition("=")[2] for word in arguments if word.startswith("--rdzv-endpoint=")), ""):
        arguments = [*own_place(re.sub(r":\d+$", "", place).strip("[]")), *arguments]
        threading.Thread(target=_tell_of_waiting, args=(place,), daemon=True).start()
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 1
    except SignalException as error:
        return 128 + error.sigval
    except (RendezvousError, ConnectionError, TimeoutError) as error:
        cause = _first_line(error.__cause__ or error)
        print(
            f"error: --rdzv {place}: the hosts did not meet there ({cause}); it must be an address of a host, "
            f"and each must run the same command within a minute",
            file=sys.stderr,
        )
        return LOST_RANK
    return 0


def own_place(meeting: str) -> list[str]:
    """Returns torchrun's flags that say which host opens the port, and at which address others reach this one.

    `meeting`: name or address of the host where all meet. torchrun itself looks up this host's own name, which on many
    machines does not lead to the address that the others use. Then no host would open the port.
    """
    flags = []
    if address := address_to(meeting):
        flags.append(f"--local-addr={address}")
        if address not in addresses_of(meeting):
            flags.append("--rdzv-conf=is_host=false")
        elif address not in addresses_of(socket.gethostname()):  # else torchrun finds out itself
            flags.append("--rdzv-conf=is_host=true")
    return flags


def _tell_of_waiting(place: str) -> None:
    """Says that other hosts are waited for, until this one has started its ranks."""
    waited, seconds = threading.Event(), FIRST_WORD
    while not waited.wait(seconds):
        if psutil.Process(os.getpid()).children():
            return
        print(f"waiting for the other hosts at {place} (--rdzv): each must run the same command", flush=True)
        seconds = NEXT_WORD


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
