"""What `on_error: skip` leaves out: counted by reason, the first three quoted."""

from collections import Counter
from dataclasses import dataclass, field

from randcond.launch.errors import UserError

QUOTED = 3


@dataclass
class LeftOut:
    """Stops at the first bad thing, or with `skip` counts them all."""

    skip: bool
    counts: Counter[str] = field(default_factory=Counter)  # reason -> number
    first: list[str] = field(default_factory=list)  # the first sentences

    def add(self, reason: str, sentence: str, number: int = 1) -> None:
        """Counts `number` bad things for a reason. Raises UserError(sentence) unless `skip`."""
        if not self.skip:
            raise UserError(sentence)
        self.counts[reason] += number
        if len(self.first) < QUOTED:
            self.first.append(sentence)

    def __str__(self) -> str:
        """Returns e.g. `3 (2 damaged, 1 empty), the first: A; B; C`; "" if nothing is left out."""
        return left_out(self.counts, self.first)


def left_out(counts: Counter[str], first: list[str]) -> str:
    """Returns one line about what was left out, by reason, with the first sentences.

    >>> left_out(Counter({"damaged": 2}), ["image a.png: is damaged"])
    '2 (2 damaged), the first: image a.png: is damaged'
    """
    if not counts:
        return ""
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common())
    return f"{counts.total():,} ({reasons}), the first: {'; '.join(first[:QUOTED])}"
