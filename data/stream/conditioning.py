"""Random conditioning (paper Sec. 3.3 and Table C): with probability p(t) a noised latent gets another caption.

A new p(t) is one function in PROBABILITIES; its keyword arguments are `conditioning.p_args`.
"""

import inspect
import math
from collections.abc import Callable

from randcond.launch.errors import UserError

Probability = Callable[..., float]


def none(u: float) -> float:
    """Never: the baseline, every latent keeps its caption."""
    return 0.0


def exponential(u: float, lam: float = 5.0) -> float:
    """exp(-lambda (1 - t/T)): the paper's default."""
    return math.exp(-lam * (1 - u))


def mirrored(u: float, lam: float = 5.0) -> float:
    """The exponential above T/2, mirrored around T/2 below it: high at both ends, low in the middle."""
    return exponential(max(u, 1 - u), lam)


def linear(u: float) -> float:
    """t/T."""
    return u


def sigmoid(u: float, slope: float = 20.0, centre: float = 0.7) -> float:
    """1 / (1 + exp(-20 (t/T - 0.7))): the channel-compressed finals."""
    return 1 / (1 + math.exp(-slope * (u - centre)))


def constant(u: float, value: float = 0.5) -> float:
    """The same for every timestep; Table C has 0.5 and 1."""
    return value


PROBABILITIES: dict[str, Probability] = {
    function.__name__: function for function in (none, exponential, mirrored, linear, sigmoid, constant)
}


def probability_table(name: str, p_args: dict[str, float], timesteps: int) -> list[float]:
    """p(t) for t = 0 .. timesteps-1; raises UserError naming the key when name, argument or value is wrong."""
    if name not in PROBABILITIES:
        raise UserError(f"conditioning.p: unknown p(t) {name!r}; known: {', '.join(PROBABILITIES)}")
    function = PROBABILITIES[name]
    known = list(inspect.signature(function).parameters)[1:]
    for argument in p_args:
        if argument not in known:
            raise UserError(f"conditioning.p_args.{argument}: {name} takes {', '.join(known) or 'no argument'}")
    table = [function(t / timesteps, **p_args) for t in range(timesteps)]
    if not all(0 <= p <= 1 for p in table):
        raise UserError(f"conditioning.p_args: {name} with {p_args} leaves [0, 1]: {min(table)} to {max(table)}")
    return table
