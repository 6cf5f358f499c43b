"""Where the ranks of a job meet, and who is missing there: said within seconds, and again until all have come.

Torch itself waits for the other ranks in silence, for as long as its timeout is.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from randcond.launch.runtime.logs import log
from randcond.launch.runtime.processes import SUPERVISOR

FIRST_WORD = 5.0  # seconds of waiting before the first line about it
NEXT_WORD = 30.0  # seconds between the next ones
_NAMED = 8  # missing ranks in a line
_ARRIVED, _ALL = "randcond/arrived", "randcond/all"
_ALONE = "If this run has one process, unset RANK and WORLD_SIZE"
_STARTING = "Ranks may still be loading libraries or compiling an operator"


@contextmanager
def meeting(timeout: timedelta) -> Iterator[None]:
    """A context that starts the process group. Before it, waits until all ranks have come to MASTER_ADDR:MASTER_PORT.

    Says what is waited for: who is missing, or that all have come and are being connected. Raises ConnectionError after
    `timeout`. Does nothing for a single rank.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks == 1:
        yield
        return
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    store = _gather(rank, ranks, place, timeout)
    connected = threading.Event()
    threading.Thread(target=_tell_of_connecting, args=(ranks, place, connected), daemon=True).start()
    try:
        yield
    finally:
        connected.set()
        del store  # rank 0 serves it until here, and torch's own store at the same port lives on


def _gather(rank: int, ranks: int, place: str, timeout: timedelta) -> dist.Store:
    """Waits for all ranks. Returns the store by which they found each other."""
    deadline = time.monotonic() + timeout.total_seconds()
    words = _Words(deadline)
    store = _connect(rank, ranks, place, words)
    store.set(f"{_ARRIVED}/{rank}", "1")
    if rank:
        while not store.check([_ALL]):
            words.say(f"rank {rank} has come to {place}, where rank 0 waits for other ranks", log.info)
            time.sleep(0.2)
        return store
    missing = list(range(ranks))
    while missing := [each for each in missing if not store.check([f"{_ARRIVED}/{each}"])]:
        words.say(_missing(missing, ranks, place), log.info)
        time.sleep(0.1)
    store.set(_ALL, "1")
    return store


def _connect(rank: int, ranks: int, place: str, words: "_Words") -> dist.Store:
    """Returns the store of rank 0, which also torch uses afterwards. Under torchrun, the launcher serves it."""
    host, _, port = place.rpartition(":")
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while True:
        try:
            return dist.TCPStore(
                host, int(port), ranks, serves, timedelta(seconds=5), wait_for_workers=False, multi_tenant=True
            )
        except dist.DistNetworkError as error:
            if serves:
                raise ConnectionError(f"rank 0 can't listen at {place} ({_first_line(error)})") from None
            # On every rank's console: where rank 0 is absent, nobody else says it.
            words.say(f"waiting for rank 0 of {ranks} at {place}, which does not answer. {_hint()}", log.error)


def _missing(missing: list[int], ranks: int, place: str) -> str:
    named = ", ".join(map(str, missing[:_NAMED])) + (" ..." if len(missing) > _NAMED else "")
    return f"waiting at {place} for {len(missing)} of {ranks} ranks: {named}. {_hint()}"


def _hint() -> str:
    """Returns a hint about missing ranks. `randcond run` sets RANK itself: there it is not the cause."""
    return _STARTING if SUPERVISOR in os.environ else _ALONE


def _tell_of_connecting(ranks: int, place: str, connected: threading.Event) -> None:
    wait = FIRST_WORD
    while not connected.wait(wait):
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        chosen = ", ".join(f"{name}={os.environ.get(name, 'not set')}" for name in names)
        log.info(f"all {ranks} ranks have come to {place}; waiting until they can reach each other ({chosen})")
        wait = NEXT_WORD


class _Words:
    """Says what is waited for: first after a few seconds, then every half minute."""

    def __init__(self, deadline: float) -> None:
        self.began, self.deadline, self.next = time.monotonic(), deadline, time.monotonic() + FIRST_WORD

    def say(self, text: str, log_it: Callable[[str], None]) -> None:
        """Says it if it is time. Raises ConnectionError with it after the deadline."""
        now = time.monotonic()
        if now > self.deadline:
            raise ConnectionError(f"{text} (gave up after {now - self.began:.0f} s)")
        if now > self.next:
            self.next = now + NEXT_WORD
            log_it(f"{text} ({now - self.began:.0f} s so far)")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
