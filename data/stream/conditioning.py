"""Random conditioning (paper Sec. 3.3, Table C): replaces the caption of a noised latent with probability p(t).

To add a p(t), write a function of u and add it to PROBABILITIES. Its keyword arguments are the keys of
`conditioning.p_args`. u is how far the timestep is on the way to noise: t/T, or another measure (`conditioning.of`).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.model_zoo.process.levels import Level
from randcond.model_zoo.process.process import Process
from randcond.model_zoo.process.timesteps import TimestepDraw

Probability = Callable[..., float]


def none(u: float) -> float:
    """Returns 0: the baseline, in which no caption is replaced."""
    return 0.0


def exponential(u: float, lam: float = 5.0) -> float:
    """Returns exp(-lam (1 - t/T)): the paper's default."""
    return math.exp(-lam * (1 - u))


def mirrored(u: float, lam: float = 5.0) -> float:
    """Returns the exponential for t >= T/2, and its mirror image for t < T/2: high at both ends, low in the middle."""
    return exponential(max(u, 1 - u), lam)


def linear(u: float) -> float:
    """Returns t/T."""
    return u


def sigmoid(u: float, slope: float = 20.0, centre: float = 0.7) -> float:
    """Returns 1 / (1 + exp(-slope (t/T - centre))): used for the paper's final channel-compressed students."""
    return 1 / (1 + math.exp(-slope * (u - centre)))


def constant(u: float, value: float = 0.5) -> float:
    """Returns the same value for every timestep. Table C has 0.5 and 1."""
    return value


PROBABILITIES: dict[str, Probability] = {
    function.__name__: function for function in (none, exponential, mirrored, linear, sigmoid, constant)
}


@dataclass(frozen=True)
class Times:
    """What the stream draws for a sample: its timestep, and whether its caption is replaced."""

    draw: TimestepDraw
    name: str  # conditioning.p
    p_args: dict[str, float]
    level: Level

    def probability(self, timestep: float) -> float:
        """Returns p(t)."""
        return PROBABILITIES[self.name](self.level(timestep), **self.p_args)

    def expected_share(self, draws: int = 10_000) -> float:
        """Returns the share of captions that training replaces: the mean of p(t) over the timesteps that it draws.

        Takes the mean over `draws` evenly spaced quantiles of the timesteps' distribution.
        """
        quantiles = ((number + 0.5) / draws for number in range(draws))
        return sum(self.probability(self.draw(_Quantile(each))) for each in quantiles) / draws


@dataclass(frozen=True)
class _Quantile:
    """Stands in for a random generator: every draw is this quantile of its distribution."""

    share: float  # in (0, 1)

    def random(self) -> float:
        return self.share

    def integers(self, end: int) -> int:
        return int(self.share * end)

    def standard_normal(self) -> float:
        return NormalDist().inv_cdf(self.share)


def times_of(config: Config, process: Process) -> Times:
    """Returns the draws of an experiment for a teacher's process.

    Raises UserError naming the key if the process does not have the distribution, if p(t) or an argument is unknown, or
    if a value of p(t) is not in [0, 1].
    """
    conditioning, train = config.conditioning, config.train
    level = process.level(conditioning.of, train.shift)
    _probabilities(conditioning.p, conditioning.p_args, [level(t) for t in process.grid])
    return Times(process.draw(train.timesteps, train.shift), conditioning.p, conditioning.p_args, level)


def probability_table(name: str, p_args: dict[str, float], timesteps: int) -> list[float]:
    """Returns p(t) for u = t/T and t = 0 .. timesteps - 1. `name`: conditioning.p. `p_args`: conditioning.p_args.

    Raises UserError if a name or argument is unknown, or if a value of p(t) is not in [0, 1].

    >>> tuple(round(p, 3) for p in probability_table("exponential", {"lam": 5.0}, timesteps=4))
    (0.007, 0.024, 0.082, 0.287)
    """
    return _probabilities(name, p_args, [t / timesteps for t in range(timesteps)])


def _probabilities(name: str, p_args: dict[str, float], levels: Sequence[float]) -> list[float]:
    if name not in PROBABILITIES:
        raise UserError(f"conditioning.p: unknown p(t) {name!r}; known: {', '.join(PROBABILITIES)}")
    function = PROBABILITIES[name]
    known = list(inspect.signature(function).parameters)[1:]
    for argument in p_args:
        if argument not in known:
            raise UserError(
                f"conditioning.p_args.{argument}: unknown argument of {name}; known: {', '.join(known) or 'none'}"
            )
    table = [function(u, **p_args) for u in levels]
    if not all(0 <= p <= 1 for p in table):
        raise UserError(
            f"conditioning.p_args: p(t) is {min(table)} to {max(table)} for {name} with {p_args}, expected 0 to 1"
        )
    return table
