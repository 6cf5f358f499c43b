"""The learning rate of each step, as a pure function of the step and of `train.steps`: exact over a resume.

In step n of N (n = 1 ... N), with W steps of warm-up (`train.warmup`) and the largest rate r (`train.lr`):

    lr(n) = r * min(1, n / W) * (m + (1 - m) * f(u)),    u = max(0, n - 1 - S) / (N - S)

m is `train.min_lr`. S is the last step before the decay, and u in [0, 1) is the share of the decay that is done:

    constant   f = 1                         the paper's
    cosine     f = (1 + cos(pi u)) / 2       S = W
    linear     f = 1 - u                     S = W
    wsd        f = 1 - u                     S = N - round(`train.decay` * N): warm-up, stable, decay (arXiv 2404.06395)

So the first step of the decay still has the rate r, and a step N + 1 would have m * r.
"""

import math

from randcond.launch.config.sections import Train
from randcond.launch.errors import UserError

FIXED = ("cosine", "linear")  # their rate depends on train.steps in (almost) every step, so it can't change in a run


def learning_rate(train: Train, step: int) -> float:
    """Returns the learning rate of a step. The first step is 1, the last one `train.steps`."""
    warm = train.lr * min(1.0, step / max(1, train.warmup))
    if train.schedule == "constant":
        return warm
    start = decay_start(train)
    done = max(0, step - 1 - start) / (train.steps - start)
    left = (1 + math.cos(math.pi * done)) / 2 if train.schedule == "cosine" else 1 - done
    return warm * (train.min_lr + (1 - train.min_lr) * left)


def decay_start(train: Train) -> int:
    """Returns the last step before the decay. Without a decay it is the last step of all."""
    if train.schedule == "wsd":
        return train.steps - round(train.decay * train.steps)
    return train.warmup if train.schedule in FIXED else train.steps


def check_schedule(train: Train) -> None:
    """Raises UserError if keys of the schedule contradict each other."""
    for key, default, needs in (("decay", 0.1, ("wsd",)), ("min_lr", 0.0, ("cosine", "linear", "wsd"))):
        if getattr(train, key) != default and train.schedule not in needs:
            raise UserError(f"train.{key}: needs train.schedule={' or '.join(needs)}, got {train.schedule}")
    start = decay_start(train)
    if train.schedule == "wsd" and start == train.steps:
        raise UserError(f"train.decay: {train.decay:g} of train.steps={train.steps} is less than one step; raise it")
    if train.schedule != "constant" and (train.warmup >= train.steps or train.warmup > start):
        raise UserError(
            f"train.warmup: {train.warmup} steps leave too few of train.steps={train.steps} for "
            f"train.schedule={train.schedule}; lower it"
        )
