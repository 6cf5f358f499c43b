"""The environment variables by which launchers tell each process its rank, and what is left of them without a launcher.

A shell inside a job (torchrun, srun, a notebook of a cluster) still has those of the job. A process that is alone must
not take them for its own: it would wait for ranks that nobody starts.
"""

import os
from collections.abc import MutableMapping

from randcond.launch.errors import UserError

_MEETING = ("MASTER_ADDR", "MASTER_PORT")  # where the ranks meet
_RANKS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "CROSS_RANK", "CROSS_SIZE"),
)
_TORCHRUN = "TORCHELASTIC_"
_UNSET = f"for one process, unset {', '.join(('RANK', 'WORLD_SIZE', *_MEETING))}; `randcond run` starts ranks itself"


def forget_ranks(environment: MutableMapping[str, str]) -> None:
    """Removes what a launcher has set for the ranks of another job."""
    _forget(environment, (*_RANKS, *_MEETING))


def _forget(environment: MutableMapping[str, str], names: tuple[str, ...]) -> None:
    for name in [each for each in environment if each in names or each.startswith(_TORCHRUN)]:
        del environment[name]


def settle_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Leaves in the environment only what concerns this process. Call it before anything asks for the rank.

    Without RANK or WORLD_SIZE this process is alone. A single rank meets nobody. Raises UserError if the variables
    contradict each other, or if several ranks have no place to meet.
    """
    if not ("RANK" in environment and "WORLD_SIZE" in environment):
        forget_ranks(environment)
        return
    rank, ranks = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank >= ranks:
        raise UserError(f"RANK={rank} and WORLD_SIZE={ranks} in the environment: no such rank; {_UNSET}")
    if ranks == 1:
        _forget(environment, _MEETING)
    elif missing := [name for name in _MEETING if not environment.get(name)]:
        raise UserError(f"WORLD_SIZE={ranks}, but {missing[0]} is not set: the ranks can't meet; {_UNSET}")
    else:
        _number(environment, "MASTER_PORT")
        if "LOCAL_RANK" in environment:
            _number(environment, "LOCAL_RANK")


def _number(environment: MutableMapping[str, str], name: str) -> int:
    text = environment[name].strip()
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{name}={text} in the environment: expected a whole number; {_UNSET}")
    return int(text)
